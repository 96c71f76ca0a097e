"""Each fused operation against its reference and against what `torch.compile` makes of the reference.

    python -m pytest bench/kernels

At DavidNet's sizes; `norm_act_pool` with a small batch on a CPU, unless `--full` asks for more. What is called, and the
bytes that it must move, are in `bench/kernel_cases.py`.
"""

import pytest
import torch

BATCH = 512
"""Images in a batch of what takes milliseconds anywhere."""
HALF = torch.float16 if torch.cuda.is_available() else torch.bfloat16
BY_COMPILER = pytest.mark.unstable("what the compiler makes of it differs from one start to the next")
VARIANTS = pytest.mark.parametrize("variant", ["reference", "kernel", pytest.param("compiled", marks=BY_COMPILER)])
