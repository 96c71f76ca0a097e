"""What every test may ask for."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from fastcifar import registry

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: kernels run in its interpreter, on the CPU

settings.register_profile("untimed", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("untimed")

# In a worker of pytest-xdist; the programs that tests start are none, and pytest-benchmark would time nothing in one.
if os.environ.pop("PYTEST_XDIST_WORKER", None):  # a core each: threads of several processes wait for each other's
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """What is marked `gpu` runs on CUDA alone."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def pytest_collection_finish():
    """Leave what all tests have in common out of garbage collections, half a second each with it, of which some tests
    ask for several; and collect less often than for every 700 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_unconfigure():
    """Let what is left be freed at the end, which nanobind's modules warn of otherwise."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_plugins():
    """Forget the plug-ins of a test, whose files are gone after it: processes that another starts would miss them."""
    yield
    registry.PLUGINS.clear()


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """Where there is a GPU only what is marked `gpu` finds it: other tests look into every step and compare bits, and a
    captured training shows no step. Tests that run on whatever there is have a fixture of this name that does nothing.
    """
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def new_record():
    """Makes the record of a run that never was, with the fields that are given."""
    from fastcifar.recipes import Recipe  # not above: kernels, which come with it, are told first where they run
    from fastcifar.record import DatasetFacts, DeviceFacts, RunRecord, Versions

    def make(**fields) -> RunRecord:
        colors = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        made_up = {
            "recipe": Recipe(),
            "dataset": DatasetFacts("cifar10", 50_000, 10_000, "0" * 64, 0, ("cat", "dog"), *colors, "a folder"),
            "device": DeviceFacts("cpu", "an abacus", threads=1),
            "versions": Versions("3.12"),
            **{"subset": None, "seed": 0, "init": {"mode": "cold"}, "dtype": "float32", "history": ()},
            **{"started": "2025-01-31T12:00:00Z", "epochs": 10, "steps": 970, "images_per_second": 20_000.0},
            **{"accuracy": 0.94, "tta_accuracy": 0.942, "tta_loss": 0.2},
            **{"train_seconds": 26.1, "time_seconds": 26.3, "process_seconds": 31.0},
        }
        return RunRecord(**{**made_up, **fields})

    return make


@pytest.fixture(scope="session")
def real_data_dir() -> str:
    """The folder that FASTCIFAR_DATA names, which holds the real CIFAR-10; the test is skipped where there is none."""
    folder = os.environ.get("FASTCIFAR_DATA")
    if not folder:
        pytest.skip("FASTCIFAR_DATA names no folder with the real CIFAR-10")
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this checkout, made from a copy of it."""
    pytest.importorskip("setuptools", minversion="70.1")  # older ones need another package to make a wheel
    root, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(root / name, folder)
    for name in ("fastcifar", "kernels", "bench", "tests"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "dist" / done.stdout.split()[-1]


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that the wheel is installed in, alone."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", folder, wheel]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder
