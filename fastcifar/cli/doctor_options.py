"""The options of `fastcifar doctor`, apart from the command: reading them needs tyro, the command does not."""

from __future__ import annotations

from dataclasses import dataclass

from fastcifar.cli.arguments import parse
from fastcifar.cli.options import DataOptions, Switch

__all__ = ["Options", "parse"]


@dataclass(frozen=True)
class Options(DataOptions):
    """Examine this machine: whether it can train, what is missing or changes results, and what to do.

    Python, packages, torch, GPUs, CUDA, cuDNN, Triton, CPU, threads, compiler, memory, environment, disk and data set
    are each ok, warn (it works, but slower, without something, or differently) or fail (trainings fail). Nothing is
    installed, changed or downloaded. The exit status is that of the worst: 0 ok, 1 warn, 2 fail (or a bad flag).
    """

    json: Switch = False
    """Print a list of objects {name, status, found, advice} and nothing else to standard output."""
