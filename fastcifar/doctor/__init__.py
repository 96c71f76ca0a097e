"""What fastcifar finds on this machine: each check is a function that returns a `Finding`.

Nothing beyond the standard library is imported but by the checks themselves: what is missing or broken is a finding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fastcifar.catalogue import DEFAULT_DATASET
from fastcifar.doctor import accelerator, host, packages, stored
from fastcifar.doctor.finding import STATUSES, Finding, fail

__all__ = ["CHECKS", "STATUSES", "Asked", "Finding", "examine"]


@dataclass(frozen=True)
class Asked:
    """What is examined."""

    dataset: str = DEFAULT_DATASET
    data_dir: Path | None = None
    mirror: str | None = None
    out: Path = Path("runs")


CHECKS: dict[str, Callable[[Asked], Finding]] = {
    "python": lambda asked: packages.python(),
    "packages": lambda asked: packages.required(),
    "extras": lambda asked: packages.extras(),
    "command": lambda asked: packages.command(),
    "torch": lambda asked: packages.torch(),
    "cuda": lambda asked: accelerator.cuda(),
    "gpu": lambda asked: accelerator.gpu(),
    "cudnn": lambda asked: accelerator.cudnn(),
    "triton": lambda asked: accelerator.triton(),
    "cpu": lambda asked: host.cpu(),
    "threads": lambda asked: host.threads(),
    "compiler": lambda asked: host.compiler(),
    "cpp": lambda asked: host.cpp(),
    "memory": lambda asked: host.memory(),
    "environment": lambda asked: host.environment(),
    "disk": lambda asked: stored.disk(asked.out),
    "data": lambda asked: stored.data(asked.dataset, asked.data_dir, asked.mirror),
}
"""All checks by name, in the order in which they are told."""


def examine(asked: Asked) -> list[Finding]:
    """Return what each check finds. One that raises is a failure with the reason."""
    findings = []
    for name, check in CHECKS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                finding = check(asked)
            except (Exception, SystemExit) as error:  # what is broken raises anything
                advice = "see packages and torch" if isinstance(error, ImportError) else "report this line, please"
                finding = fail(f"{type(error).__name__}: {error}", advice)
        findings.append(replace(finding, name=name))
    return findings
