"""`Finding`: what a check found, whether that is well, and what to do."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]
STATUSES: tuple[Status, ...] = ("ok", "warn", "fail")
"""From the best to the worst."""


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    status: Status
    found: str
    advice: str = ""
    """What to do; for what is well, what else could be done, if anything."""
    name: str = ""
    """The check's."""


def ok(found: str, advice: str = "") -> Finding:
    return Finding("ok", found, advice)


def warn(found: str, advice: str) -> Finding:
    return Finding("warn", found, advice)


def fail(found: str, advice: str = "") -> Finding:
    return Finding("fail", found, advice)


def worst(findings: list[Finding]) -> Finding:
    """Return these as one, with the status of the worst."""
    status = max(findings, key=lambda each: STATUSES.index(each.status)).status
    advice = dict.fromkeys(each.advice for each in findings if each.advice)
    return Finding(status, "; ".join(each.found for each in findings), "; ".join(advice))


@functools.cache
def import_error(module: str) -> str:
    """Return why `module` cannot be imported, "" if it can. A broken one is tried once: each time would take as long,
    and the second error may say less."""
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # ImportError, OSError for a shared library, or what a broken one raises
        return f"{type(error).__name__}: {error}"
    return ""


def imported(module: str, package: str = "") -> Any:
    """Return `module`. Raises ImportError with the reason that `package`, by default the module, cannot be imported."""
    reason = import_error(package or module)
    if reason:
        raise ImportError(f"this needs {package or module}, which cannot be imported ({reason})")
    return importlib.import_module(module)
