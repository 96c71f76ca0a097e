"""The smallest Triton kernel: launching it shows whether Triton works on this machine."""

import triton
import triton.language as tl


@triton.jit
def write_one(out_ptr):  # out_ptr: float32 [1]
    tl.store(out_ptr, 1.0)
