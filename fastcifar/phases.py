"""The seconds of a process by phase, from its start. Standard library only, so that the clock runs while torch is
imported."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHER = "other"
"""The phase of all time that lies in no other."""

_imported = time.perf_counter()


class Phases:
    """Seconds since the process started, or since the last `restart`, by phase: `with phases("data"): ...` counts to
    "data".

    The phases sum to the whole: an inner phase's time is not counted to the outer one, time outside all phases is
    "other", and time before this object was made is the phase `before`. For one thread.
    """

    def __init__(self, before: str = "before") -> None:
        self._seconds = {before: process_seconds()}
        self._name, self._since = OTHER, time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count to `name` until the block ends, also by an error."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def restart(self) -> dict[str, float]:
        """Return the seconds of each phase, in the order in which they began, "other" last, and count anew from 0."""
        self._switch(self._name)
        seconds, self._seconds = self._seconds, {}
        return {name: seconds[name] for name in sorted(seconds, key=OTHER.__eq__)}

    @property
    def total(self) -> float:
        """Seconds of all phases up to now."""
        return sum(self._seconds.values()) + time.perf_counter() - self._since

    def _switch(self, name: str) -> str:
        """Switch to the phase `name` and return the one before."""
        now, before = time.perf_counter(), self._name
        self._seconds[before] = self._seconds.get(before, 0.0) + now - self._since
        self._seconds.setdefault(name, 0.0)
        self._name, self._since = name, now
        return before


def process_seconds() -> float:
    """Return the seconds since this process started, or without /proc since fastcifar was imported."""
    try:
        # The name, in parentheses, may hold spaces: field 22, the start in ticks after boot, is the 20th behind it.
        started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    except (OSError, ValueError, IndexError):
        return time.perf_counter() - _imported
