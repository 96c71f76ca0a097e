"""What the epochs of a training came to, on its way from the device to the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastcifar.training.step import TrainingStep
from fastcifar.training.stopwatch import Lap
from fastcifar.training.timeline import Epoch, Timeline


@dataclass(frozen=True, eq=False)
class EpochMetrics:
    """What one epoch came to: the `losses` of its steps, float32 `[steps]` on the host, each summed over its batch; how
    many answers were `correct`; and the training stopwatch at its end, in `seconds`."""

    epoch: Epoch
    losses: torch.Tensor
    correct: int
    seconds: float


class Metrics:
    """The metrics of one training's epochs. Nothing waits for the device before somebody asks `finished` to: each epoch
    has a place of its own in (pinned) memory of the host, to which its metrics are copied when the device gets there,
    and which nothing overwrites."""

    def __init__(self, timeline: Timeline, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._losses = torch.empty(timeline.total_steps, pin_memory=pinned)
        self._correct = torch.empty(len(timeline.epochs), dtype=torch.int64, pin_memory=pinned)
        self._queued: deque[tuple[Epoch, Lap]] = deque()

    def keep(self, epoch: Epoch, step: TrainingStep, lap: Lap) -> None:
        """Queue the copies of what `step` holds at the end of `epoch`; called in the block that `lap` ends with."""
        self._losses_of(epoch).copy_(step.losses[: epoch.steps], non_blocking=True)
        self._correct[epoch.number : epoch.number + 1].copy_(step.correct, non_blocking=True)
        self._queued.append((epoch, lap))

    def finished(self, wait: bool) -> Iterator[EpochMetrics]:
        """Those of each epoch that the device has ended since the last call; if `wait`, of all that were kept."""
        while self._queued and (wait or self._queued[0][1].over):
            epoch, lap = self._queued.popleft()
            seconds = lap.seconds  # from here on the copies are there
            yield EpochMetrics(epoch, self._losses_of(epoch), self._correct[epoch.number].item(), seconds)

    def _losses_of(self, epoch: Epoch) -> torch.Tensor:
        return self._losses[epoch.first_step : epoch.first_step + epoch.steps]
