"""The stopwatch of `train_seconds` and `time_seconds`; `process_seconds` is that of `fastcifar.phases`."""

from __future__ import annotations

import time

import torch


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
