"""The stopwatch of `train_seconds` and `time_seconds`; `process_seconds` is that of `fastcifar.phases`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


class Stopwatch:
    """The seconds of work on one device, summed over `with` blocks. On CUDA it waits for the device before the first
    block and where seconds are read; in between, events in the device's queue keep the time. `before` are seconds to
    begin with, such as those of a training that goes on."""

    def __init__(self, device: torch.device, before: float = 0.0) -> None:
        self.device, self.before = device, before
        self._blocks: list[tuple[Event, Event]] = []

    def __enter__(self) -> Stopwatch:
        on_cuda = self.device.type == "cuda"
        if on_cuda and not self._blocks:
            torch.cuda.synchronize(self.device)
        if not on_cuda:  # sum up finished blocks: a watch that is paused at every step has many
            self.before, self._blocks = self.seconds, []
        start, stop = (torch.cuda.Event(enable_timing=True) if on_cuda else HostEvent() for _ in range(2))
        self._blocks.append((start, stop))
        start.record()
        return self

    def __exit__(self, *exc: object) -> None:
        self._blocks[-1][1].record()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop within a `with` block inside the watch's own."""
        self.__exit__()
        yield
        self.__enter__()

    @property
    def seconds(self) -> float:
        """The seconds of all blocks so far."""
        return self.lap().seconds

    def lap(self) -> Lap:
        """Return the reading at the end of the last block, which may be the present one, to be read later."""
        return Lap(tuple(self._blocks), self.before)


@dataclass(frozen=True)
class Lap:
    """The reading of a stopwatch at the end of a block."""

    blocks: tuple[tuple[Any, Any], ...]  # events: both of a block of one kind
    before: float = 0.0

    @property
    def over(self) -> bool:
        """True once the device has reached the end of the block; does not wait for it."""
        return all(stop.query() for _, stop in self.blocks[-1:])

    @property
    def seconds(self) -> float:
        """The seconds of all blocks; waits for the device to reach their end."""
        for _, stop in self.blocks[-1:]:
            stop.synchronize()
        return self.before + sum(start.elapsed_time(stop) for start, stop in self.blocks) / 1000


class HostEvent:
    """A time on the host, with the methods of `torch.cuda.Event`."""

    def record(self) -> None:
        self._time = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Do nothing: the host is at every event it has recorded."""

    def elapsed_time(self, end: HostEvent) -> float:
        """Return the milliseconds from this to `end`."""
        return (end._time - self._time) * 1000


Event = HostEvent | torch.cuda.Event
