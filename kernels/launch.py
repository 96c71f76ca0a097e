"""Which path an operation takes, and how its Triton kernels are made and launched.

Triton is imported when the first kernel is launched, not before: the import costs half a second, and a machine without
CUDA (or without Triton) never needs it. So a kernel is written as a plain function under `@kernel`, and becomes a
`triton.jit` function, its module gaining the name `tl`, once Triton is loaded.

The environment variable `FASTCIFAR_KERNELS`, read at every call, forces a path: `reference` (plain torch everywhere) or
`triton` (an error where Triton cannot run: it needs CUDA, or `TRITON_INTERPRET=1` set before Triton is imported).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl  # given to this module when Triton is loaded

_pending: list[tuple[Callable, dict]] = []
_compiled: list | None = None
"""What `compile_only` is compiling, while it does; else None."""

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the Triton kernels compute on; float64 takes the reference path everywhere."""


def kernel(**options: Any) -> Callable[[Callable], Any]:
    """Mark a function as a Triton kernel, or as a device function of one; `options` go to `triton.jit`."""

    def mark(function: Callable) -> Callable:
        _pending.append((function, options))
        return function

    return mark


def load_triton() -> None:
    """Import Triton and turn the functions marked so far into `triton.jit` functions; ImportError without Triton."""
    if not _pending:
        return
    import triton
    import triton.language

    package = [module for name, module in list(sys.modules.items()) if name.startswith("fastcifar.kernels.")]
    for module in package:
        vars(module)["tl"] = triton.language
    while _pending:
        function, options = _pending.pop()
        compiled = triton.jit(**options)(function)
        for module in package:  # the one that defines it and those that import it
            if vars(module).get(function.__name__) is function:
                setattr(module, function.__name__, compiled)


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on `tensor` takes its Triton path now.

    Raises ValueError for an unknown `FASTCIFAR_KERNELS` and RuntimeError where `triton` is forced and cannot run.
    """
    forced = os.environ.get("FASTCIFAR_KERNELS", "")
    if forced not in ("", "reference", "triton"):
        raise ValueError(f"FASTCIFAR_KERNELS is {forced!r}; allowed: reference, triton, or unset")
    if forced == "reference" or tensor.dtype not in (*TRITON_DTYPES, torch.uint8):
        return False
    if forced == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
        if not (tensor.is_cuda or interpreted or _compiled is not None):
            raise RuntimeError(
                f"FASTCIFAR_KERNELS=triton on a tensor on {tensor.device}; allowed: cuda, or TRITON_INTERPRET=1 set "
                "before the start"
            )
        load_triton()
        return True
    return tensor.is_cuda and _triton_works()


@kernel()
def _write_one(out_ptr):  # out_ptr: float32 [1]
    tl.store(out_ptr, 1.0)


@functools.cache
def _triton_works() -> bool:
    """Launch the smallest kernel once: Triton may be absent, or lack the C compiler or driver that it needs."""
    try:
        load_triton()
        _write_one[(1,)](torch.empty(1, device="cuda"))
    except Exception as error:  # whatever it is, training must go on without Triton
        warnings.warn(
            f"Triton does not work here, using plain torch, which is slower ({type(error).__name__}: {error})",
            stacklevel=2,
        )
        return False
    return True


def launch(function, grid: tuple[int, ...], *arguments, **options) -> None:
    """Launch a kernel; a failure becomes a RuntimeError that names the kernel and its tensors' shapes and dtypes."""
    options["enable_fp_fusion"] = True  # said outright: Triton's default for it is changing
    try:
        if _compiled is not None:
            _compiled.append(function.warmup(*arguments, grid=grid, **options))
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
    """Inside it `launch` compiles what it would launch, and launches nothing (outputs stay unwritten); gives the list
    of what Triton returns for each."""
    global _compiled
    before, _compiled = _compiled, []
    try:
        yield _compiled
    finally:
        _compiled = before
