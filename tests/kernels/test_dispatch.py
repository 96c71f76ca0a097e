"""Which path an operation takes, what that imports, and what is said when it cannot run."""

import os
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch

from fastcifar.kernels import conv_pool, cross_entropy, newton_schulz, norm_act_pool, whiten
from fastcifar.kernels.launch import compile_only, launch

ROOT = Path(__file__).parents[2]
STEP = """
import os, sys, torch
os.environ.pop("TRITON_INTERPRET", None)
from fastcifar.kernels import cross_entropy, norm_act_pool
x, bias = torch.randn(2, 3, 4, 4, requires_grad=True), torch.zeros(3)
def step():
    out, *_ = norm_act_pool(x, bias, pool=True)
    loss, _ = cross_entropy(out.flatten(1), torch.tensor([0, 1]))
    loss.backward()
"""


def python(code, **environment):
    environment = {**os.environ, "FASTCIFAR_KERNELS": "", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def test_a_second_copy_under_another_name_is_refused():
    done = python("import kernels")
    assert done.returncode != 0
    assert "ImportError: the kernels were imported as 'kernels'; allowed: fastcifar.kernels" in done.stderr


def test_a_training_step_on_a_cpu_loads_neither_triton_nor_the_compiler():
    done = python(
        STEP + "step(); print([name for name in ('triton', 'torch._dynamo', 'sympy') if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_without_triton_the_reference_runs_and_forcing_triton_is_an_error():
    code = "import sys; sys.modules['triton'] = None\n" + STEP + "step(); print('one step')\n"
    done = python(code + "os.environ.update(FASTCIFAR_KERNELS='triton', TRITON_INTERPRET='1')\nstep()")
    assert done.stdout.strip() == "one step", done.stderr
    assert "import of triton halted" in done.stderr


def test_forcing_triton_where_it_cannot_run_says_where_it_can(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="FASTCIFAR_KERNELS=triton on a tensor on cpu; allowed: cuda, or TRITON_INT"):
        cross_entropy(torch.zeros(1, 2), torch.tensor([0]))


def test_an_unknown_path_is_refused(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "cuda")
    with pytest.raises(ValueError, match="FASTCIFAR_KERNELS is 'cuda'; allowed: reference, cpp, triton, or unset"):
        norm_act_pool(torch.zeros(1, 1, 2, 2), torch.zeros(1))


def test_float64_takes_the_reference_path_even_where_triton_is_forced(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "triton")
    assert cross_entropy(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]))[0].dtype == torch.float64


def test_a_broken_triton_on_cuda_is_one_warning_and_then_the_reference(monkeypatch):
    module = sys.modules["fastcifar.kernels.launch"]

    class NoCompiler:
        def __getitem__(self, grid):
            raise OSError("no C compiler")

    monkeypatch.delenv("FASTCIFAR_KERNELS", raising=False)
    smallest = types.SimpleNamespace(write_one=NoCompiler())
    monkeypatch.setitem(sys.modules, "fastcifar.kernels.smallest", smallest)
    monkeypatch.setattr(module, "_triton_works", module.functools.cache(module._triton_works.__wrapped__))
    tensor = types.SimpleNamespace(is_cuda=True, dtype=torch.float32)
    with pytest.warns(UserWarning, match="Triton does not work here, using plain torch.*OSError: no C compiler"):
        assert not module.use_triton(tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not module.use_triton(tensor)


def test_what_one_thread_compiles_ahead_another_launches():
    """`compile_only` is for the thread that is inside it: others train meanwhile."""
    done, inside, left = [], threading.Event(), threading.Event()

    class Kernel:
        __name__ = "_some_kernel"

        def __getitem__(self, grid):
            return lambda *_, **__: done.append("launched")

        def warmup(self, *_, **__):
            done.append("compiled")

    def compiles():
        with compile_only() as compiled:
            inside.set()
            left.wait(10)
            launch(Kernel(), (1,), torch.zeros(1))
            assert len(compiled) == 1

    thread = threading.Thread(target=compiles)
    thread.start()
    inside.wait(10)
    launch(Kernel(), (1,), torch.zeros(1))
    left.set()
    thread.join()
    launch(Kernel(), (1,), torch.zeros(1))
    assert done == ["launched", "compiled", "launched"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_they_compute_in_the_types_of_their_tensors(dtype):
    def results():
        torch.manual_seed(0)
        x, weight = torch.randn(2, 24, 9, 9), torch.randn(16, 24, 3, 3, requires_grad=True)
        pooled = conv_pool(x, weight, False)
        matrix = torch.randn(16 * 32) / 100
        newton_schulz(matrix, orthogonal := torch.empty_like(matrix), [1, 16, 32], steps=3, coefficients=(3, -4, 2))
        return [
            *(pooled, *torch.autograd.grad(pooled.square().sum(), weight), orthogonal),
            whiten(torch.randn(2, 3, 8, 8), torch.randn(24, 3, 2, 2)),
            norm_act_pool(x, torch.zeros(24), pool=True)[0],
            cross_entropy(torch.randn(4, 10), torch.arange(4))[0],
        ]

    plain = results()
    with torch.autocast("cpu", dtype):
        for mine, expected in zip(results(), plain, strict=True):
            assert mine.dtype == torch.float32 and torch.equal(mine, expected)


def test_a_failed_launch_names_the_kernel_and_its_tensors():
    class Failing:
        __name__ = "_some_kernel"

        def __getitem__(self, grid):
            raise ValueError("out of resources")

    with pytest.raises(
        RuntimeError, match=r"kernel _some_kernel failed on bfloat16 \[2, 3\], int64 \[1\]: out of resources"
    ):
        launch(Failing(), (1,), torch.zeros(2, 3, dtype=torch.bfloat16), None, torch.zeros(1, dtype=torch.int64), 7)
