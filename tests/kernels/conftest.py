"""What the kernel tests share: the device, both paths of an operation, and memory that shows unwritten outputs."""

import dataclasses
import importlib
import importlib.util
import os

import numpy
import pytest
import torch

from fastcifar.kernels import cpp
from tests.kernels.machine_code import Compilers


def pytest_collection_modifyitems(items):
    """Put tests that wait for compilers last: these run beside the other tests."""
    items.sort(key=_waits_for_compilers)


@pytest.fixture(scope="session", autouse=True)
def compilers(request, tmp_path_factory):
    """Start the compilers with the first test of a kernel."""
    if not importlib.util.find_spec("triton") or not any(map(_waits_for_compilers, request.session.items)):
        yield None
        return
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if workers == 1 else folder.parent) / "compilers"
    folder.mkdir(exist_ok=True)
    running = Compilers(folder)
    yield running
    running.stop(wait=workers > 1)


@pytest.fixture(scope="session")
def compiled(compilers):
    """Return PTX and stack of every compiled variant, by case and kernel."""
    pytest.importorskip("triton")
    return compilers.results()


def _waits_for_compilers(item) -> bool:
    return "compiled" in getattr(item, "fixturenames", ())


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Leave the GPU visible, if any: kernels are tested where there is most to see."""


def pytest_generate_tests(metafunc):
    """Run a test that asks for a path on those that its file names in `PATHS`."""
    if "path" in metafunc.fixturenames:
        paths = getattr(metafunc.module, "PATHS", ["reference", "triton"])
        metafunc.parametrize("path", paths, indirect=True)


@pytest.fixture
def device(request) -> str:
    on_gpu = torch.cuda.is_available() and ("path" not in request.fixturenames or _path_of(request) != "cpp")
    return "cuda" if on_gpu else "cpu"


def _path_of(request) -> str:
    return request.node.callspec.params["path"]


_NORM = {"rows": 16, "channels": 8, "stages": 2, "programs": 6}
SMALL = {
    "augment_triton": {"block": 64},
    "conv_pool_triton": {
        **{"pixels": 16, "outputs": 16, "programs": 3, "merged": 64},
        **{"gradient_pixels": 16, "gradient_columns": 64, "gradient_programs": 24},
    },
    "cross_entropy_triton": {"values": 128},
    "flat_muon_triton": {"block": 64},
    "flat_optimizer_triton": {"block": 128},
    "newton_schulz": {"tile": 16, "depth": 16, "square_rows": 16, "square_depth": 32},
    "norm_act_pool.backward": _NORM,
    "norm_act_pool.forward": _NORM,
    "whiten_triton": {"pixels": 32},
}
"""By file of kernels, interpreted sizes so small that a few small images fill several tiles of several programs, with a
rest."""


@pytest.fixture
def path(request, monkeypatch, device) -> str:
    """Force a path: plain torch, C++ on the CPU, or Triton, compiled on CUDA and in Triton's interpreter elsewhere."""
    if request.param == "cpp" and (cpp.compiler() is None or cpp.instructions() is None):
        pytest.skip("there is no C++ compiler, or no kernels for this machine")
    if request.param == "triton":
        triton = pytest.importorskip("triton", reason="Triton is not installed")
        if device == "cpu" and triton.__version__ < "3.7" and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
            pytest.skip("the interpreter of this Triton needs an older numpy")
        for name, sizes in SMALL.items():
            table = importlib.import_module(f"fastcifar.kernels.{name}").SIZES
            monkeypatch.setattr(table, "interpreted", dataclasses.replace(table.interpreted, **sizes))
    monkeypatch.setenv("FASTCIFAR_KERNELS", request.param)
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill new memory with NaN (255 in bytes): an output that is not written shows."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of references in float32
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture
def assert_close():
    """Give `assert_close(out, expected, dtype)`: rounding in `dtype` explains ‖out - expected‖ / ‖expected‖; the
    elements of `expected` count as `least` on average at least, where they are sums of larger terms.

    Triton's interpreter truncates to bfloat16 where a GPU rounds, hence the loose bound there.
    """

    def check(out: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, least: float = 1e-30) -> None:
        assert out.shape == expected.shape
        out, expected = (tensor.detach().double().cpu() for tensor in (out, expected))
        error = (out - expected).norm() / expected.norm().clamp(min=least * out.numel() ** 0.5)
        assert error < TOLERANCE[dtype]  # false for NaN

    return check
