"""Every Triton kernel compiles to machine code of every GPU generation it is for; that needs no GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from fastcifar.kernels import compile_all
from fastcifar.kernels.compile_ahead import _load

CASES = [
    (80, "float16", "gelu", True),
    (89, "float32", "silu", False),
    (90, "bfloat16", "celu", False),
]
"""Generation, dtype, activation and whether scales are learned: each value of each in one case or another."""

CODE = """
import json, os, re, subprocess, sys, tempfile, torch, triton
from triton.backends.compiler import GPUTarget

architecture, dtype, activation, scale = json.loads(sys.argv[1])


class Driver:  # what triton asks of a driver in order to compile
    get_current_target = staticmethod(lambda: GPUTarget("cuda", architecture, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


triton.runtime.driver.set_active(Driver)
from fastcifar.kernels import compile_all
from fastcifar.kernels import launch_sizes as sizes

sizes._INTERPRETED = sizes._SIZES[divmod(architecture, 10)]  # what tensors on the CPU are launched with
with sys.modules["fastcifar.kernels.launch"].compile_only():  # lets Triton take tensors on the CPU
    compile_all("cpu", getattr(torch, dtype), activation=activation, scale=scale, cutout=scale, jitter=scale, muon=True)

cuobjdump = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


def stack_bytes(cubin):  # what a thread spills, and its arrays that are not in registers
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    return sum(int(re.search(rf"{name}:(\\d+)", usage)[1]) for name in ("STACK", "LOCAL"))


found = {}
for name, module in list(sys.modules.items()):
    for function in list(vars(module).values()) if name.startswith("fastcifar.kernels.") else ():
        for cache in getattr(function, "device_caches", {}).values():
            found[function.__name__] = [
                {"ptx": kernel.asm["ptx"], "stack": stack_bytes(kernel.asm["cubin"])} for kernel in cache[0].values()
            ]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """By case and kernel, the PTX and stack of every compiled variant; the cases compile at the same time."""
    pytest.importorskip("triton")
    environment = {**os.environ, "FASTCIFAR_KERNELS": "triton", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("t"))}
    environment.pop("TRITON_INTERPRET", None)
    running = {}
    for case in CASES:
        command = [sys.executable, "-c", CODE, json.dumps(case)]
        running[case] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
    found = {}
    for case, process in running.items():
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        found[case] = json.loads(out)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_compiles(compiled, case):
    variants = {name: len(found) for name, found in compiled[case].items()}
    assert variants == {
        # of a training, and of evaluation with flips and without; in float32 for the whitening
        "_augment_kernel": 2 + bool(case[3]) + (case[1] != "float32"),
        "_cross_entropy_kernel": 1,
        "_flat_sgd_kernel": 2 if case[1] == "float32" else 4,  # with a compute copy or not, with the average or not
        "_flat_ema_kernel": 1,
        "_moments_kernel": 2,  # with the pool or not
        "_normalise_kernel": 2,  # with a residual or not
        "_inference_kernel": 4,
        "_slope_sums_kernel": 1,
        "_gradient_kernel": 3,  # without the pool, with it, and with it from images of odd sides
        "_running_kernel": 1,
        "_momentum_kernel": 1,
        "_direction_kernel": 1,
        "_update_kernel": 2,  # with the average or not
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_kernel_spills_registers(compiled, case):
    assert {name for name, found in compiled[case].items() if any(kernel["stack"] for kernel in found)} == set()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_moves_much_memory_moves_16_bytes_at_a_time(compiled, case):
    names = ("_flat_sgd_kernel", "_flat_ema_kernel", "_normalise_kernel", "_inference_kernel", "_gradient_kernel")
    for name in (*names, "_momentum_kernel", "_update_kernel"):
        for kernel in compiled[case][name]:
            assert "ld.global.v4.b32" in kernel["ptx"] and "st.global.v4.b32" in kernel["ptx"], name
    for name in ("_moments_kernel", "_slope_sums_kernel", "_direction_kernel"):
        assert all("ld.global.v4.b32" in kernel["ptx"] for kernel in compiled[case][name]), name


def test_a_compiled_kernel_is_loaded_in_a_thread_of_its_own_device_and_a_failure_left_to_its_launch(monkeypatch):
    devices, loaded = [], []

    class Kernel:
        def __init__(self, fails=False):
            self.fails = fails

        @property
        def run(self):
            if self.fails:
                raise RuntimeError("no C compiler")
            loaded.append(self)

    class Compiling:
        def __init__(self, kernel):
            self.result = lambda: kernel

    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    kernels = [Kernel(), Kernel(fails=True), Kernel()]
    for kernel in (kernels[0], kernels[1], Compiling(kernels[2])):
        _load(3, kernel)
    assert devices == [3] * 3
    assert loaded == [kernels[0], kernels[2]]


def test_nothing_is_compiled_where_the_reference_path_is_taken(monkeypatch):
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    assert compile_all("cpu") is False
