"""The compute type of a run, and facts of its device."""

from __future__ import annotations

import math
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from pathlib import Path

import torch

from fastcifar.host import ProcessSetting
from fastcifar.kernels import compile_cpp, conv3x3, conv_input_gradient, conv_weight_gradient
from fastcifar.record import DeviceFacts

_CPU_TYPES = (torch.float32, torch.bfloat16)
"""The types that "auto" chooses from on a CPU."""
_MARGIN = 1.2
"""It takes bfloat16 where float32 takes so many times as long: near 1, two measurements may not agree. Measured: 0.45
on a Xeon with AVX512-BF16 and without AMX."""
_SECONDS, _FEWEST_ROUNDS, _CLEAR = 0.03, 8, 4.0
"""Rounds that are measured: as many as fit into this time, but at least so many, or one where a type is so many times
as fast as the other."""


def resolve_dtype(dtype: str, device: torch.device, kept: object = None) -> torch.dtype:
    """Return the compute type for a recipe's `dtype`: "auto" is float16 on CUDA; on a CPU bfloat16 where a convolution
    is faster in it, by `convolution_seconds`, else float32.

    kept: the name of the type that the same training had before, where it had one: "auto" stays with it, but that CPUs
        have no float16. "": it had that of older versions, which kept no name and went by what a CPU lists.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    for known in _CPU_TYPES if device.type == "cpu" else (*_CPU_TYPES, torch.float16):
        if kept == str(known).removeprefix("torch."):
            return known
    if device.type == "cuda":
        return torch.float16
    if kept == "":
        lists = torch.backends.mkldnn.is_available() and ("avx512_bf16" in _cpuinfo() or "amx_bf16" in _cpuinfo())
        return torch.bfloat16 if lists else torch.float32
    seconds = convolution_seconds()
    return torch.bfloat16 if seconds[torch.bfloat16] * _MARGIN < seconds[torch.float32] else torch.float32


def convolution_seconds() -> dict[torch.dtype, float]:
    """Return what a 3x3 convolution and both its gradients take on one core of this CPU in float32 and in bfloat16, in
    seconds, infinite for a type that it cannot be computed in: by the kernels that training takes for them, which are
    compiled if need be. What the CPU lists does not tell: oneDNN may be held to older instructions
    (ONEDNN_MAX_CPU_ISA), not every CPU with bfloat16 is faster in it, and float32 has Winograd's convolutions.

    Measured once in a process, in some 100 ms. On one core, since threads that wait for a busy one hide the difference;
    in a thread of its own, whose settings nobody else sees.
    """
    with _MEASURING:
        if not _measured:
            with ThreadPoolExecutor(1) as one:
                _measured.update(one.submit(measure_convolutions).result())
        return dict(_measured)


def take_convolution_seconds(seconds: Mapping[torch.dtype, float]) -> None:
    """Go by what another process measured on this machine, so that both take the same type."""
    with _MEASURING:
        _measured.update(seconds)


_MEASURING = threading.Lock()
_measured: dict[torch.dtype, float] = {}


def measure_convolutions() -> dict[torch.dtype, float]:
    """Return the sum of each pass's best time, the types in turn. Sets the number of torch's threads for threads that
    are still to come (those of others are their own), and restores it."""
    with suppress(RuntimeError):  # where the user insists on what can't be: told when a training begins
        compile_cpp()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        passes = {dtype: _passes(dtype) for dtype in _CPU_TYPES}
        best = {dtype: [math.inf] * len(calls) for dtype, calls in passes.items()}
        rounds, end, ratio = 0, time.perf_counter() + _SECONDS, 1.0
        while time.perf_counter() < end or (rounds < _FEWEST_ROUNDS and 1 / _CLEAR < ratio < _CLEAR):
            for dtype, calls in passes.items():
                for number, call in enumerate(calls):
                    start = time.perf_counter()
                    call()
                    best[dtype][number] = min(best[dtype][number], time.perf_counter() - start)
            wide, half = (sum(best[dtype]) or math.inf for dtype in _CPU_TYPES)
            rounds, ratio = rounds + 1, wide / half
    finally:
        torch.set_num_threads(threads)
    return dict(zip(_CPU_TYPES, (wide, half), strict=True))


def _passes(dtype: torch.dtype) -> list[partial]:
    """Return the passes of a convolution as in the middle of a network, of as many images as its kernels ask for, after
    a first call of each: what they need is now made. None where torch cannot compute them in `dtype`."""
    like = {"dtype": dtype, "device": "cpu"}
    images, filters = (
        torch.ones(shape, **like).contiguous(memory_format=torch.channels_last)
        for shape in ((10, 64, 15, 15), (64, 64, 3, 3))
    )
    calls = [
        partial(conv3x3, images, filters, padding=1),
        partial(conv_input_gradient, images, filters, padding=1),
        partial(conv_weight_gradient, images, images, padding=1),
    ]
    try:
        for call in calls:
            call()
    except RuntimeError:
        return []
    return calls


# Where torch.testing has frozen its flags, torch.backends.cudnn.benchmark can't be set; these can, as flags() does.
_cudnn_searches = ProcessSetting(torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark)
_cudnn_limit = ProcessSetting(
    getattr(torch._C, "_cuda_get_cudnn_benchmark_limit", lambda: 0),  # torch for CPUs has neither
    getattr(torch._C, "_cuda_set_cudnn_benchmark_limit", lambda limit: None),
)


@contextmanager
def cudnn_search(wanted: bool) -> Iterator[None]:
    """Let cuDNN search for the fastest convolution of each shape within a `with` block, if `wanted`, among all that it
    has: the first 10, torch's limit, leave out what is fastest for few channels. Only these two settings are changed
    and restored: `torch.backends.cudnn.flags` would reset the others too."""
    if not wanted:
        yield
        return
    with _cudnn_searches.set_to(True), _cudnn_limit.set_to(0):
        yield


@contextmanager
def no_cudnn_search(wanted: bool) -> Iterator[None]:
    """Leave both settings as the program has them, within a `with` block inside that of `cudnn_search(wanted)`."""
    if not wanted:
        yield
        return
    with _cudnn_searches.as_before(True), _cudnn_limit.as_before(0):
        yield


def current(device: torch.device) -> AbstractContextManager[None]:
    """Make `device` CUDA's current one within a `with` block, if it is one: events and graphs are of its stream."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def describe_device(device: torch.device) -> DeviceFacts:
    """Return the facts of the hardware that belong to every measured result."""
    if device.type == "cuda":
        return DeviceFacts("cuda", torch.cuda.get_device_name(device))
    return DeviceFacts("cpu", _cpu_name(), torch.get_num_threads())


@lru_cache
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _cpu_name() -> str:
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
