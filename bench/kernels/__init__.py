"""Each fused operation against its reference and against what `torch.compile` makes of the reference.

    python -m pytest bench/kernels

Small on a CPU unless `--full` asks for more, full-size where there is a GPU. `bytes_moved` counts what the operation
must read and write, in both passes.
"""

import pytest
import torch

HALF = torch.float16 if torch.cuda.is_available() else torch.bfloat16
BY_COMPILER = pytest.mark.unstable("what the compiler makes of it differs from one start to the next")
VARIANTS = pytest.mark.parametrize("variant", ["reference", "kernel", pytest.param("compiled", marks=BY_COMPILER)])
