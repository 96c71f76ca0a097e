"""The choice of the path an operation takes, and the launches of Triton kernels.

Triton is imported by the files that hold kernels alone, and an operation imports its own when it takes its Triton path:
the import costs half a second, and a machine without CUDA (or without Triton) never needs it.

The environment variable `FASTCIFAR_KERNELS`, read at every call, forces a path: `reference` (plain torch everywhere),
`cpp` (an error where C++ kernels can't be compiled; for operations on a CPU that have one) or `triton` (an error where
Triton cannot run: it needs CUDA, or `TRITON_INTERPRET=1` set before the first kernel's file is imported).
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

_compiled: ContextVar[list | None] = ContextVar("_compiled", default=None)
"""The list that `compile_only` gives, inside it; else None. Each thread has its own: others launch meanwhile."""

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of the Triton kernels; float64 takes the reference path everywhere."""


def forced_path() -> str:
    """Return the path that `FASTCIFAR_KERNELS` forces; empty for none. Raises ValueError for an unknown one."""
    forced = os.environ.get("FASTCIFAR_KERNELS", "")
    if forced not in ("", "reference", "cpp", "triton"):
        raise ValueError(f"FASTCIFAR_KERNELS is {forced!r}; allowed: reference, cpp, triton, or unset")
    return forced


def use_triton(tensor: Tensor) -> bool:
    """Return True if an operation on `tensor` takes its Triton path now.

    Raises ValueError for an unknown `FASTCIFAR_KERNELS` and RuntimeError if `triton` is forced and cannot run.
    """
    forced = forced_path()
    if forced in ("reference", "cpp") or tensor.dtype not in (*TRITON_DTYPES, torch.uint8):
        return False
    if forced == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
        if not (tensor.is_cuda or interpreted or _compiled.get() is not None):
            raise RuntimeError(
                f"FASTCIFAR_KERNELS=triton on a tensor on {tensor.device}; allowed: cuda, or TRITON_INTERPRET=1 set "
                "before the start"
            )
        return True
    return tensor.is_cuda and _triton_works()


@functools.cache
def _triton_works() -> bool:
    """Launch the smallest kernel once: Triton may be absent, or lack the C compiler or driver that it needs."""
    try:
        from fastcifar.kernels.smallest import write_one

        write_one[(1,)](torch.empty(1, device="cuda"))
    except torch.OutOfMemoryError:  # which says nothing of Triton
        raise
    except Exception as error:  # whatever it is, training must go on without Triton
        warnings.warn(
            f"Triton does not work here, using plain torch, which is slower ({type(error).__name__}: {error})",
            stacklevel=2,
        )
        return False
    return True


def multiprocessors(tensor: Tensor) -> int:
    """Return the number of multiprocessors of the GPU that `tensor` is on; 1 where kernels are interpreted."""
    gpu = _gpu_of(tensor)
    return 1 if gpu is None else gpu[1]


def is_older_than(generation: tuple[int, int], tensor: Tensor) -> bool:
    """Return True where `tensor` is on a GPU of a lower compute capability."""
    gpu = _gpu_of(tensor)
    return gpu is not None and gpu[0] < generation


def _gpu_of(tensor: Tensor) -> tuple[tuple[int, int], int] | None:
    """Return compute capability and number of multiprocessors of the GPU that `tensor` is on; None where kernels are
    interpreted."""
    return _gpu(tensor.device.index) if tensor.is_cuda else None


@functools.cache
def _gpu(index: int) -> tuple[tuple[int, int], int]:
    properties = torch.cuda.get_device_properties(index)
    return (properties.major, properties.minor), properties.multi_processor_count


Row = TypeVar("Row")


@dataclass
class LaunchSizes(Generic[Row]):
    """Block sizes and warps of a kernel for each GPU generation: data, so that nothing is searched at run time.

    Blocks are powers of two, as `tl.arange` needs. Unless a comment says otherwise they are chosen by counting: 16-byte
    accesses per thread, two or more of them in flight, registers as the compiler reports them. Part `sizes` of
    `bench.campaign` tries others.
    """

    generations: dict[tuple[int, int], Row]
    """By compute capability. A device takes the newest row that is not newer than itself."""
    interpreted: Row
    """For Triton's interpreter, which takes milliseconds for an operation of any size: few and large programs."""

    def of(self, tensor: Tensor) -> Row:
        """Return the row for kernels on `tensor`'s device."""
        gpu = _gpu_of(tensor)
        if gpu is None:
            return self.interpreted
        capability, _ = gpu
        known = [generation for generation in self.generations if generation <= capability]
        return self.generations[max(known, default=min(self.generations))]


def product_side(number: int) -> int:
    """Return the least side of a product's matrices, a power of two of 16 or more, that holds `number` rows."""
    return max(16, 1 << (number - 1).bit_length())


def launch(function, grid: tuple[int, ...], *arguments, **options) -> None:
    """Launch a kernel; a failure becomes a RuntimeError that names the kernel and its tensors' shapes and dtypes."""
    options["enable_fp_fusion"] = True  # said outright: Triton's default for it is changing
    try:
        if (compiled := _compiled.get()) is not None:
            compiled.append(function.warmup(*arguments, grid=grid, **options))
            return
        tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.cuda.device_of(tensor):
            function[grid](*arguments, **options)
    except Exception as error:
        tensors = ", ".join(
            f"{str(argument.dtype).removeprefix('torch.')} {list(argument.shape)}"
            for argument in arguments
            if isinstance(argument, Tensor)
        )
        raise RuntimeError(f"the Triton kernel {function.__name__} failed on {tensors}: {error}") from error


@contextlib.contextmanager
def compile_only() -> Iterator[list]:
    """Make `launch` in this thread compile kernels and launch none (outputs stay unwritten). Gives the list of what
    Triton returns for each."""
    compiled: list = []
    token = _compiled.set(compiled)
    try:
        yield compiled
    finally:
        _compiled.reset(token)
