"""The compute type that "auto" takes: what is faster here, measured apart from the process around."""

import contextlib
import math
import os
import platform
import subprocess
import sys

import pytest
import torch

from fastcifar.training import convolution_seconds, device, resolve_dtype
from fastcifar.training.device import current

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def says(monkeypatch, wide, half):
    """Let a convolution take so long in float32 and in bfloat16."""
    monkeypatch.setattr(device, "convolution_seconds", lambda: {torch.float32: wide, torch.bfloat16: half})


@pytest.mark.parametrize(
    ("half", "dtype"),
    [
        (0.2, torch.bfloat16),
        (0.8, torch.bfloat16),
        (0.9, torch.float32),
        (20, torch.float32),
        (math.inf, torch.float32),
    ],
)
def test_auto_takes_bfloat16_on_a_cpu_where_it_is_clearly_faster(monkeypatch, half, dtype):
    says(monkeypatch, 1.0, half)
    assert resolve_dtype("auto", CPU) == dtype
    assert resolve_dtype("auto", CPU, kept="float16") == dtype, "a GPU's"


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [
        (("float32", CPU), torch.float32),
        (("bfloat16", CPU, "float32"), torch.bfloat16),
        (("auto", CUDA), torch.float16),
        (("auto", CUDA, ""), torch.float16),
        (("auto", CUDA, "bfloat16"), torch.bfloat16),
        (("auto", CUDA, "float32"), torch.float32),
        (("auto", CUDA, "float16"), torch.float16),
        (("auto", CPU, "float32"), torch.float32),
        (("auto", CPU, "bfloat16"), torch.bfloat16),
    ],
)
def test_nothing_is_measured_for_a_type_that_is_known(monkeypatch, asked, dtype):
    monkeypatch.setattr(device, "convolution_seconds", lambda: pytest.fail("measured"))
    assert resolve_dtype(*asked) == dtype


def test_it_is_measured_once_and_changes_nothing_of_the_process(monkeypatch):
    calls, real = [], device._passes
    monkeypatch.setattr(device, "_passes", lambda dtype: calls.append(torch.get_num_threads()) or real(dtype))
    device._measured.clear()

    def settings():
        return torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        before, state = settings(), torch.get_rng_state()
        found = convolution_seconds()
        assert settings() == before and torch.equal(torch.get_rng_state(), state)
    found.clear()
    assert [seconds > 0 for seconds in convolution_seconds().values()] == [True, True]
    assert calls == [1, 1]


def test_a_type_that_torch_cannot_convolve_in_is_never_faster(monkeypatch):
    real = device.conv3x3

    def convolution(images, filters, padding):
        if images.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return real(images, filters, padding=padding)

    monkeypatch.setattr(device, "conv3x3", convolution)
    found = device.measure_convolutions()
    assert found[torch.bfloat16] == math.inf > found[torch.float32] > 0


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are for x86")
def test_instructions_that_onednn_is_held_back_from_do_not_count():
    code = "import torch; from fastcifar.training import *; print(resolve_dtype('auto', torch.device('cpu')))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "torch.float32\n", done.stderr


def test_the_training_device_is_made_the_current_one():
    """Events and graphs are of the current device's stream; on a CPU there is none."""
    block = current(torch.device("cuda:1"))
    assert isinstance(block, torch.cuda.device) and block.idx == 1
    assert isinstance(current(torch.device("cpu")), contextlib.nullcontext)
