"""The seconds of a training or a process by phase. Standard library only, so that the clock runs while torch is
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
    """Seconds since this was made, or since the last `restart`, by phase: `with phases("data"): ...` counts to "data".

    The phases sum to the whole: an inner phase's time is not counted to the outer one, and time outside all phases is
    "other". With `before`, the name of one more phase, the seconds from the start of the process are counted too. For
    one thread.
    """

    def __init__(self, before: str | None = None) -> None:
        self._seconds = {} if before is None else {before: process_seconds()}
        self._name, self._since = OTHER, time.perf_counter()
        self.failed: str | None = None
        """The innermost phase that the first error ended, since this was set to None."""

    def __reduce__(self) -> tuple[type[Phases], tuple[str]]:
        return Phases, ("start of Python",)  # in another process: that one's seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count to `name` until the block ends, also by an error."""
        outer = self._switch(name)
        try:
            yield
        except BaseException:
            self.failed = self.failed or name
            raise
        finally:
            self._switch(outer)

    def restart(self) -> dict[str, float]:
        """Return the seconds of each phase, as `seconds` does, and count anew from 0."""
        found, self._seconds = self.seconds(), {}
        return found

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase up to now, in the order in which they began, "other" last."""
        self._switch(self._name)
        return in_order(self._seconds)

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


def in_order(seconds: dict[str, float]) -> dict[str, float]:
    """Return the seconds of phases in their order, "other" last."""
    return {name: seconds[name] for name in sorted(seconds, key=OTHER.__eq__)}


def process_seconds() -> float:
    """Return the seconds since this process started; without Linux's /proc since fastcifar was imported."""
    seen = time.perf_counter() - _imported
    try:
        # The name, in parentheses, may hold spaces: field 22, the start in ticks after boot, is the 20th behind it.
        started = float(_stat().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        # The clock that the ticks are of. /proc/uptime may be that of a container, which started later.
        return max(seen, time.clock_gettime(time.CLOCK_BOOTTIME) - started) if started else seen
    except (OSError, ValueError, IndexError, AttributeError):
        return seen


def _stat() -> str:
    return Path("/proc/self/stat").read_text()
