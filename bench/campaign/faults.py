"""Failures on demand, to prove that each costs one part: `FASTCIFAR_FAULT=segv:PART,hang:PART,nocapture:RECIPE`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from fastcifar.errors import UserError

VARIABLE = "FASTCIFAR_FAULT"


@dataclass(frozen=True)
class Faults:
    """The parts or recipes that have each kind of fault."""

    segv: frozenset[str] = field(default_factory=frozenset)
    """Parts that die by SIGSEGV at their first piece of work, as after an illegal access to memory."""
    hang: frozenset[str] = field(default_factory=frozenset)
    """Parts that never return."""
    nocapture: frozenset[str] = field(default_factory=frozenset)
    """Recipes whose capture counts as failed."""

    def strike(self, *names: str) -> None:
        """Crash or hang, if the part with these names has such a fault."""
        if self.segv.intersection(names):
            os.kill(os.getpid(), signal.SIGSEGV)
        while self.hang.intersection(names):
            time.sleep(3600)


def read_faults(text: str, parts: Collection[str], recipes: Collection[str]) -> Faults:
    """Return the faults in the variable's text. Raises UserError for an unknown kind, part or recipe."""
    found: dict[str, set[str]] = {"segv": set(), "hang": set(), "nocapture": set()}
    for word in filter(None, text.split(",")):
        kind, _, name = word.partition(":")
        allowed = recipes if kind == "nocapture" else parts
        if kind not in found:
            raise UserError(f"{VARIABLE} has {word!r}; allowed: segv:PART, hang:PART, nocapture:RECIPE")
        if name not in allowed:
            raise UserError(f"{VARIABLE} has {word!r}; allowed after {kind}: {', '.join(allowed)}")
        found[kind].add(name)
    return Faults(**{kind: frozenset(names) for kind, names in found.items()})
