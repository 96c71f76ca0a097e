"""What every test may ask for."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: kernels run in its interpreter, on the CPU


def pytest_collection_modifyitems(items):
    """What is marked `gpu` runs on CUDA alone."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """Where there is a GPU only what is marked `gpu` finds it: other tests look into every step and compare bits, and a
    captured training shows no step. Tests that run on whatever there is have a fixture of this name that does nothing.
    """
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def real_data_dir() -> str:
    """The folder that FASTCIFAR_DATA names, which holds the real CIFAR-10; the test is skipped where there is none."""
    folder = os.environ.get("FASTCIFAR_DATA")
    if not folder:
        pytest.skip("FASTCIFAR_DATA names no folder with the real CIFAR-10")
    return folder
