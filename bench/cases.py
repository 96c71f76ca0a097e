"""A case: one operation at one set of shapes, in variants that are timed on fresh arguments.

`bench.recorded_cases` has the operators as a recipe's step calls them. `bench.kernel_cases` has the operations as a
network calls them, forward and backward, to set them beside what torch.compile makes of them.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils._triton import has_triton

from bench.timing import Work

_ROTATED_BYTES = 256 << 20  # more than the L2 cache of any GPU of today, also where half of the bytes are results
_MOST_SETS = 200


class Case(Protocol):
    """One operation at one set of shapes."""

    operation: str
    shape: str  # the shapes in a line, by which cases of one operation differ
    bytes_moved: int  # read and written, at the least
    make: Callable[[], tuple[Any, ...]]  # returns fresh arguments
    variant: Callable[[str], Callable[..., object]]
    """Returns what is called with the arguments: "kernel", "reference" (plain torch) or "compiled", if there is one."""


def in_turn(case: Case, variant: str, device: torch.device) -> Work:
    """Return a call of a variant which takes one set of arguments after the other: on CUDA so many sets that no cache
    holds them, on a CPU one."""
    count = min(1 + _ROTATED_BYTES // max(1, case.bytes_moved), _MOST_SETS) if device.type == "cuda" else 1
    sets = itertools.cycle([case.make() for _ in range(count)])
    run = case.variant(variant)
    return lambda: run(*next(sets))


def lacking_for_compile(device: torch.device) -> str | None:
    """Return what torch.compile would need and this machine lacks."""
    if device.type == "cpu":
        compilers = (os.environ.get("CXX"), "g++", "c++", "clang++")
        return None if any(name and shutil.which(name) for name in compilers) else "a C++ compiler"
    return None if has_triton() else "Triton"
