"""Failures on demand, to prove that each costs one part: `FASTCIFAR_FAULT=segv:PART,hang:PART,nocapture:RECIPE`.

segv: the part dies by SIGSEGV at its first piece of work, as after an illegal access to memory. hang: it never returns.
nocapture: the recipe's capture counts as failed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection

from fastcifar.errors import UserError

VARIABLE = "FASTCIFAR_FAULT"
Faults = frozenset[str]  # words of the variable, such as "segv:kernels"


def strike(faults: Faults, names: Collection[str]) -> None:
    """Crash or hang, if the part with these names has such a fault."""
    if any(f"segv:{name}" in faults for name in names):
        os.kill(os.getpid(), signal.SIGSEGV)
    while any(f"hang:{name}" in faults for name in names):
        time.sleep(3600)


def read_faults(text: str, parts: Collection[str], recipes: Collection[str]) -> Faults:
    """Return the faults in the variable's text. Raises UserError for an unknown kind, part or recipe."""
    allowed = {"segv": parts, "hang": parts, "nocapture": recipes}
    words = list(filter(None, text.split(",")))
    for word in words:
        kind, _, name = word.partition(":")
        if kind not in allowed:
            raise UserError(f"{VARIABLE} has {word!r}; allowed: segv:PART, hang:PART, nocapture:RECIPE")
        if name not in allowed[kind]:
            raise UserError(f"{VARIABLE} has {word!r}; allowed after {kind}: {', '.join(allowed[kind])}")
    return frozenset(words)
