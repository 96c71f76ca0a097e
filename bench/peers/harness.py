"""Services that a peer's adapted code calls: our data, our clocks, a stop after some steps."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from bench.timing import synchronize
from fastcifar.data import Dataset
from fastcifar.training.stopwatch import HostEvent

WHITENING_IMAGES = 5000  # the least number of images handed out: the programs fit their whitening to the first 5,000

PLAIN, WITH_TTA = 0, 2  # keys of `Harness.accuracies`: airbench's names for no test-time augmentation and for all of it


class Enough(Exception):
    """Leaves somebody else's loop when the steps that were asked for are done; no error."""


class Harness:
    """One peer's services; `begin` starts a run of it.

    With `steps`, the run ends by `Enough` after one untimed step and that many timed ones, and the program gets only as
    many images as that takes (its loop prepares all its images, which is no part of a step). Without, the program
    trains to its end.
    """

    def __init__(self, dataset: Dataset, device: torch.device, batch_size: int) -> None:
        self.device, self.batch_size = device, batch_size
        self.dataset = dataset.to(device)
        self.begin(None, 0)

    def begin(self, steps: int | None, seed: int) -> None:
        """Start a run of so many steps, None: a whole training, with all generators seeded."""
        self.limit, self.steps_done = steps, 0
        self._begins, self._ends = [], []
        self._running: Event | None = None
        self.own_seconds, self.seconds = 0.0, 0.0
        self.evaluation_seconds: float | None = None
        self._evaluation_counts = False
        self.accuracies: dict[int, float] = {}
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    # For their code -------------------------------------------------------------------------------------------------

    def split(self, train: bool) -> dict[str, object]:
        """Return the `train.pt` or `test.pt` of the airbench family: images uint8 `[N, H, W, 3]`, labels, classes."""
        split, count = (self.dataset.train if train else self.dataset.test), None
        if self.limit is not None:
            count = max(WHITENING_IMAGES, (self.limit + 1) * self.batch_size) if train else 1000
        images, labels = split.images[:count].clone(), split.labels[:count].clone()
        return {"images": images, "labels": labels, "classes": list(self.dataset.classes)}

    def Event(self, enable_timing: bool = True) -> Event:
        return Event(self)

    def synchronize(self) -> None:
        """Stand in for torch.cuda.synchronize."""
        synchronize(self.device)

    @staticmethod
    def compile(model=None, **options):
        """Stand in for torch.compile where it is left out: return what is given, as a call and as a decorator."""
        if model is None:
            return lambda function: function
        if isinstance(model, torch.nn.Module):
            model.__dict__["_orig_mod"] = model  # as torch's wrapper has it; past Module's own __setattr__
        return model

    def bias_steps(self, steps: int) -> int:
        """Return for how many steps the whitening's bias trains: as they say, or, where steps are timed, for none (-1:
        their rate divides by it), as in most of their training."""
        return steps if self.limit is None else -1

    def step_begins(self) -> None:
        """Note that a step begins, if its loader is no part of it; else a step begins where the last ended."""
        if self.limit is not None:
            self._begins.append(self._mark())

    def step_done(self) -> None:
        """Note that a step has ended. Raises Enough after the last that was asked for."""
        self.steps_done += 1
        if self.limit is not None:
            self._ends.append(self._mark())
            if self.steps_done > self.limit:
                raise Enough

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Time the last evaluation, whether their stopwatch runs meanwhile or not."""
        self._evaluation_counts = self._running is not None
        begin = self._mark()
        yield
        self.evaluation_seconds = _between(begin, self._mark(wait=True))

    # For the runners ------------------------------------------------------------------------------------------------

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each timed step, the first of the run left out."""
        self.synchronize()
        begins = self._begins[1:] or self._ends[:-1]
        return [_between(begin, end) for begin, end in zip(begins, self._ends[1:], strict=False)]

    @property
    def train_seconds(self) -> float:
        """The sum of their stopwatch, without the last evaluation."""
        return self.own_seconds - (self.evaluation_seconds if self._evaluation_counts else 0.0)

    @property
    def time_seconds(self) -> float | None:
        """The same with it; None where its time is not known."""
        if self._evaluation_counts:
            return self.own_seconds
        return None if self.evaluation_seconds is None else self.own_seconds + self.evaluation_seconds

    def read_stopped(self) -> float:
        """Return what their stopwatch would show now: its sum, and the section that it is in."""
        self.synchronize()
        if self._running is None:
            return self.own_seconds
        return self.own_seconds + _between(self._running.mark, self._mark(wait=True))

    def _mark(self, wait: bool = False) -> HostEvent | torch.cuda.Event:
        """Return a point in time: on CUDA in the stream, so that the host need not wait."""
        event = torch.cuda.Event(enable_timing=True) if self.device.type == "cuda" else HostEvent()
        event.record()
        if wait:
            self.synchronize()
        return event


class Event:
    """A `torch.cuda.Event` on any device, which also sums what is read from it, by it and by the host's clock."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def record(self) -> None:
        self.at, self.mark = time.perf_counter(), self._harness._mark()
        self._harness._running = self

    def elapsed_time(self, end: Event) -> float:
        """Return the milliseconds from this event to `end`. They call it after synchronizing, at the end of what they
        time."""
        seconds = _between(self.mark, end.mark)
        self._harness.own_seconds += seconds
        self._harness.seconds += time.perf_counter() - self.at
        self._harness._running = None
        return 1000 * seconds


def _between(begin, end) -> float:
    return begin.elapsed_time(end) / 1000
