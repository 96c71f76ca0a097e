"""Each fused operation against its reference and against what `torch.compile` makes of the reference.

    python -m pytest bench/kernels

Small on a CPU, full-size where there is a GPU. `bytes_moved` counts what the operation must read and write, in both
passes.
"""

import pytest
import torch

CUDA = torch.cuda.is_available()
BATCH = 512 if CUDA else 64
HALF = torch.float16 if CUDA else torch.bfloat16
VARIANTS = pytest.mark.parametrize("variant", ["reference", "kernel", "compiled"])
