"""The three stopwatches: `train_seconds`, `time_seconds` and `process_seconds`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

_imported = time.perf_counter()


class Stopwatch:
    """Seconds of work on one device, summed over `with` blocks; the device is synchronised at both ends of each."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> Stopwatch:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._start, self._stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._start.record()
        else:
            self._began = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.device.type == "cuda":
            self._stop.record()
            torch.cuda.synchronize(self.device)
            self.seconds += self._start.elapsed_time(self._stop) / 1000
        else:
            self.seconds += time.perf_counter() - self._began


def process_seconds() -> float:
    """Seconds since this process started; where the system does not tell (no /proc), since fastcifar was imported."""
    try:
        # The name, in parentheses, may hold spaces: field 22, the start in clock ticks after boot, is the 20th behind
        # it.
        started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    except (OSError, ValueError, IndexError):
        return time.perf_counter() - _imported
