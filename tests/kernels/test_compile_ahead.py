"""Every Triton kernel compiles to machine code of every GPU generation it is for; that needs no GPU."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from fastcifar.kernels import compile_ahead
from fastcifar.kernels.compile_ahead import _load

CASES = [
    (80, "bfloat16", "davidnet", "augment.cutout=8"),
    (
        *(89, "float32", "speedrun96"),
        "speedrun.freeze_scale=false speedrun.activation=silu ema.decay=0.9 "
        "speedrun.whitening_activation=silu speedrun.whitening_bias_epochs=1",
    ),
    (90, "float16", "speedrun94", ""),
]
"""Generation, dtype, recipe and changes of it: each activation, an average or none, scales learned or not, each choice
of `augment`, Muon and SGD."""

CODE = """
import dataclasses, json, os, re, subprocess, sys, tempfile, torch, triton
from triton.backends.compiler import GPUTarget

architecture, dtype, name, changes = json.loads(sys.argv[1])


class Driver:  # what triton asks of a driver in order to compile
    get_current_target = staticmethod(lambda: GPUTarget("cuda", architecture, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


triton.runtime.driver.set_active(Driver)
from fastcifar.data.synthetic import make_synthetic
from fastcifar.kernels import compile_ahead, newton_schulz
from fastcifar.kernels import launch_sizes as sizes
from fastcifar.recipes import RECIPES
from fastcifar.recipes.change import change, read_changes
from fastcifar.training import Trainer
from fastcifar.training.rehearse import compile_kernels

sizes._INTERPRETED = sizes._SIZES[divmod(architecture, 10)]  # what tensors on the CPU are launched with
sizes._INTERPRETED_MULTIPROCESSORS = 132
recipe = change(RECIPES[name], read_changes(changes.split()))
# Narrow, for time: the numbers of channels and of elements keep the divisors that kernels are compiled for.
recipe = dataclasses.replace(
    recipe,
    **{"batch_size": 512, "epochs": 4, "dtype": dtype},
    model=dataclasses.replace(recipe.model, widths=(32, 32, 32, 64)),
    speedrun=dataclasses.replace(recipe.speedrun, widths=(64, 64, 64)),
)
trainer = Trainer(recipe, make_synthetic(1024, 32), "cpu")
with sys.modules["fastcifar.kernels.launch"].compile_only():  # lets Triton take tensors on the CPU
    compile_kernels(trainer)
    if dtype != "float32":  # the most that one program holds
        x = torch.zeros(32 * sizes._INTERPRETED.small_rows, dtype=getattr(torch, dtype))
        shape = [1, sizes._INTERPRETED.small_rows, 32]
        compile_ahead(lambda: newton_schulz(x, x.clone(), shape, steps=5, coefficients=(3, -4, 2)), "cpu")
    if name == "speedrun94":  # its own number of rows, and the most
        for rows in (256, 512):
            x = torch.zeros(rows * rows, dtype=getattr(torch, dtype))
            compile_ahead(lambda: newton_schulz(x, x.clone(), [1, rows, rows], steps=3, coefficients=(3, -4, 2)), "cpu")

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
def test_every_kernel_of_the_recipe_compiles(compiled, case):
    muon = {"_momentum_kernel", "_direction_kernel", "_update_kernel", "_gram_kernel", "_step_kernel", "_apply_kernel"}
    always = {"_augment_kernel", "_cross_entropy_kernel", "_flat_sgd_kernel", "_moments_kernel", "_normalise_kernel"}
    always |= {"_inference_kernel", "_slope_sums_kernel", "_gradient_kernel"}
    always |= {"_small_kernel"} if case[1] != "float32" else set()
    averaged = {"_flat_ema_kernel"} if case[2] == "davidnet" or "ema.decay=0.9" in case[3] else set()
    assert {name for name, found in compiled[case].items() if found} == always | averaged | (
        set() if case[2] == "davidnet" else muon | {"_whiten_kernel"}
    )


def test_every_size_of_the_crops_and_the_evaluation_have_their_kernels(compiled):
    """24, 28 and 32 pixels with jitter; in evaluation and for the whitening, in float32, without; with flips too."""
    assert len(compiled[CASES[2]]["_augment_kernel"]) == 3 + 2 + 1


def test_the_whitening_has_one_kernel_for_each_size_that_computes_no_activation_of_padding(compiled):
    """24 outputs of 64 pixels are 24 for each of 64 threads, in a tile of 32."""
    found = compiled[CASES[2]]["_whiten_kernel"]
    assert [kernel["ptx"].count("rsqrt.approx") for kernel in found] == [24] * 3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_kernel_spills_registers(compiled, case):
    assert {name for name, found in compiled[case].items() if any(kernel["stack"] for kernel in found)} == set()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_moves_much_memory_moves_16_bytes_at_a_time(compiled, case):
    stored = ("_flat_sgd_kernel", "_normalise_kernel", "_inference_kernel", "_gradient_kernel")
    for name in (*stored, "_momentum_kernel", "_update_kernel", "_apply_kernel", "_small_kernel", "_whiten_kernel"):
        for kernel in compiled[case].get(name, ()):
            assert "st.global.v4.b32" in kernel["ptx"], name
    loaded = (
        "_moments_kernel",
        "_slope_sums_kernel",
        "_direction_kernel",
        "_gram_kernel",
        "_step_kernel",
        "_small_kernel",
    )
    for name in (*stored, *loaded, "_momentum_kernel", "_update_kernel", "_apply_kernel"):
        for kernel in compiled[case].get(name, ()):
            assert "ld.global.v4.b32" in kernel["ptx"] or re.search(
                r"cp.async.cg.shared.global .*0x10", kernel["ptx"]
            ), name


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
    assert compile_ahead(lambda: None, "cpu") is False
