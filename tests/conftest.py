"""What every test may ask for."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: kernels run in its interpreter, on the CPU


@pytest.fixture(scope="session")
def real_data_dir() -> str:
    """The folder that FASTCIFAR_DATA names, which holds the real CIFAR-10; the test is skipped where there is none."""
    folder = os.environ.get("FASTCIFAR_DATA")
    if not folder:
        pytest.skip("FASTCIFAR_DATA names no folder with the real CIFAR-10")
    return folder
