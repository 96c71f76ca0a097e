"""Where the seconds of a process go, from its start on, run by run. Standard library only, so that the clock runs while
torch is imported."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHER = "other"
"""The phase of whatever lies in no other."""

_imported = time.perf_counter()


class Phases:
    """Seconds since the process started, or since the last `restart`, by phase: `with phases("data"): ...` counts to
    "data".

    Phases within phases are taken out of the outer ones, and what lies in none is "other": so the parts always sum to
    the whole. What went before this object was made is the phase `before`. For one thread.
    """

    def __init__(self, before: str = "before") -> None:
        self._seconds = {before: process_seconds()}
        self._name, self._since = OTHER, time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count to `name` until the block ends, however it ends."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def restart(self) -> dict[str, float]:
        """The seconds of each phase up to now, in the order in which they first began, "other" last. From here on they
        are counted anew."""
        self._switch(self._name)
        seconds, self._seconds = self._seconds, {}
        return {name: seconds[name] for name in sorted(seconds, key=OTHER.__eq__)}

    @property
    def total(self) -> float:
        """The seconds of all phases up to now."""
        return sum(self._seconds.values()) + time.perf_counter() - self._since

    def _switch(self, name: str) -> str:
        """Go on to `name`; what went before."""
        now, before = time.perf_counter(), self._name
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._seconds.setdefault(name, 0.0)
        self._name, self._since = name, now
        return before


def process_seconds() -> float:
    """Seconds since this process started; where the system does not tell (no /proc), since fastcifar was imported."""
    try:
        # The name, in parentheses, may hold spaces: field 22, the start in ticks after boot, is the 20th behind it.
        started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    except (OSError, ValueError, IndexError):
        return time.perf_counter() - _imported
