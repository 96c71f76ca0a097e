"""Compile kernels before their first use: the Triton kernels that a program will launch, in parallel and without
launching them, and the C++ kernels of CPUs."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from fastcifar.kernels.conv_weight_gradient import SOURCE as CONV_WEIGHT_GRADIENT
from fastcifar.kernels.conv_weight_gradient import has_instructions
from fastcifar.kernels.cpp import use_cpp
from fastcifar.kernels.launch import compile_only, use_triton
from fastcifar.kernels.norm_act_pool.cpp import SOURCE as NORM_ACT_POOL
from fastcifar.kernels.winograd import SOURCE as WINOGRAD


def compile_ahead(run: Callable[[], object], device: torch.device | str = "cuda") -> bool:
    """Call `run` and compile every kernel that it would launch on `device`; a first launch then finds it compiled.

    Nothing is launched: `run` must bear that outputs of kernels stay unwritten memory. The rest of it is done, while
    threads compile. Returns False, and does nothing, if the operations do not take their Triton path (see
    FASTCIFAR_KERNELS). Compiled kernels stay in Triton's cache on disk, so a second process spends milliseconds here.
    """
    if not use_triton(torch.empty(0, device=device)):
        return False
    from triton.runtime._async_compile import AsyncCompileMode

    device = torch.device(device)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # A backward pass in a thread of autograd's own would not know the mode, and compile one kernel after another.
        one_thread = torch.autograd.set_multithreading_enabled(False)
        with AsyncCompileMode(pool), compile_only() as compiled, one_thread:
            run()
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            list(pool.map(functools.partial(_load, index), {id(kernel): kernel for kernel in compiled}.values()))
    return True


def _load(device: int, kernel: Any) -> None:
    """Load a compiled kernel and make what launches it, for which Triton 3.6 and older call a C compiler: at first
    launches all would follow one another."""
    with contextlib.suppress(Exception):  # what fails here fails again, and is told, at the first launch
        torch.cuda.set_device(device)  # of this thread
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
        _ = kernel.run  # made when it is first asked for


def compile_cpp() -> None:
    """Compile the C++ kernels that this CPU takes, all at once, unless the cache has them: else first operations would,
    one after another."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(use_cpp, cpp_sources()))


def cpp_sources() -> list[str]:
    """Return the C++ files whose kernels are for this CPU's instructions."""
    return [NORM_ACT_POOL, WINOGRAD, *([CONV_WEIGHT_GRADIENT] if has_instructions() else [])]
