"""The compute type of a run, and facts of its device."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

from fastcifar.host import ProcessSetting
from fastcifar.record import DeviceFacts


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the compute type for a recipe's `dtype`: "auto" is float16 on CUDA, bfloat16 on a CPU with hardware for it
    (its emulation is slower than float32), else float32."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


# Where torch.testing has frozen its flags, torch.backends.cudnn.benchmark can't be set; these can, as flags() does.
_cudnn_searches = ProcessSetting(torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark)


def cudnn_search(wanted: bool) -> AbstractContextManager[None]:
    """Let cuDNN search for the fastest convolution of each shape within a `with` block, if `wanted`. Only that one flag
    is changed and restored: `torch.backends.cudnn.flags` would reset the others too."""
    return _cudnn_searches.set_to(True) if wanted else nullcontext()


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


def _cpu_has_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and ("avx512_bf16" in _cpuinfo() or "amx_bf16" in _cpuinfo())


def _cpu_name() -> str:
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
