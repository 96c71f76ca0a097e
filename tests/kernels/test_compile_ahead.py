"""Every Triton kernel compiles to machine code of every GPU generation it is for; that needs no GPU."""

import re

import pytest
import torch

from fastcifar.kernels import compile_ahead
from fastcifar.kernels.compile_ahead import _load
from tests.kernels.machine_code import CASES, POOLED

SHARED = {80: 163, 89: 99, 90: 227, 120: 99}
"""KiB of shared memory that a program may have, by generation (CUDA C++ Programming Guide, compute capabilities)."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_of_the_recipe_compiles(compiled, case):
    muon = {"_momentum_kernel", "_direction_kernel", "_update_kernel", "_gram_kernel", "_step_kernel", "_apply_kernel"}
    always = {"_augment_kernel", "_cross_entropy_kernel", "_flat_sgd_kernel", "_moments_kernel", "_normalize_kernel"}
    always |= {"_inference_kernel", "_slope_sums_kernel", "_gradient_kernel"}
    always |= {"_small_kernel"} if case[1] != "float32" else set()
    always |= {"_rows_kernel"} if "row_momentum" in case[3] else set()
    pooled = {"_conv_pool_kernel", "_filters_gradient_kernel", "_filters_sum_kernel"}
    always |= pooled if case[1:3] == ("float16", "speedrun94") else set()
    averaged = {"_flat_ema_kernel"} if case[2] == "davidnet" or "ema.decay=0.9" in case[3] else set()
    assert {name for name, found in compiled[case].items() if found} == always | averaged | (
        set() if case[2] == "davidnet" else muon | {"_whiten_kernel"}
    )


def test_every_size_of_the_crops_and_the_evaluation_have_their_kernels(compiled):
    """24 and 32 pixels with jitter; in evaluation and for the whitening, in float32, without; with flips too."""
    assert len(compiled[CASES[2]]["_augment_kernel"]) == 2 + 2 + 1


def test_the_whitening_has_one_kernel_for_each_size_that_computes_no_activation_of_padding(compiled):
    """24 outputs of 64 pixels are 24 for each of 64 threads, in a tile of 32."""
    found = compiled[CASES[2]]["_whiten_kernel"]
    assert [kernel["ptx"].count("rsqrt.approx") for kernel in found] == [24] * 2


def test_the_pooled_convolution_and_its_gradient_have_a_kernel_for_each_size_that_multiplies_by_matrix_units(compiled):
    """For 24 and 32 pixels; of the convolution also one without the places of the maxima, for the evaluation."""
    for name, count in (("_conv_pool_kernel", 2 + 1), ("_filters_gradient_kernel", 2)):
        assert len(compiled[CASES[2]][name]) == count
        assert all("wgmma.mma_async" in kernel["ptx"] for kernel in compiled[CASES[2]][name])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_kernel_spills_registers(compiled, case):
    assert {name for name, found in compiled[case].items() if any(kernel["stack"] for kernel in found)} == set()


@pytest.mark.parametrize("case", [*CASES, *POOLED], ids=str)
def test_no_kernel_takes_more_shared_memory_than_there_is(compiled, case):
    """What takes more is refused when it is loaded, on a GPU alone."""
    taken = {name: max(kernel["shared"] for kernel in found) for name, found in compiled[case].items() if found}
    assert taken["_conv_pool_kernel" if case[1] == "float16" else "_normalize_kernel"] > 0
    assert {name: bytes_ for name, bytes_ in taken.items() if bytes_ > 1024 * SHARED[case[0]]} == {}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_moves_much_memory_moves_16_bytes_at_a_time(compiled, case):
    stored = ("_flat_sgd_kernel", "_normalize_kernel", "_inference_kernel", "_gradient_kernel")
    for name in (
        *stored,
        "_momentum_kernel",
        "_update_kernel",
        "_apply_kernel",
        "_small_kernel",
        "_whiten_kernel",
        "_conv_pool_kernel",
    ):
        for kernel in compiled[case].get(name, ()):
            assert "st.global.v4.b32" in kernel["ptx"], name
    loaded = (
        "_moments_kernel",
        "_slope_sums_kernel",
        "_direction_kernel",
        "_gram_kernel",
        "_step_kernel",
        "_small_kernel",
        "_conv_pool_kernel",
        "_filters_gradient_kernel",
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
