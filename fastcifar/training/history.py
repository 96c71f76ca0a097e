"""`History`: the rows of a training's epochs, copied from the device to the host without waiting."""

from __future__ import annotations

from collections import deque

import torch

from fastcifar.errors import NonFiniteLoss
from fastcifar.record import EpochRow
from fastcifar.training.stopwatch import Lap
from fastcifar.training.timeline import Epoch, Timeline


class History:
    """The rows of a training's epochs. Only `settle` waits for the device: the metrics of each epoch are copied to a
    place of their own in (pinned) host memory when the device gets there. An image has so many `answers`, all of which
    the right ones are counted among."""

    def __init__(self, timeline: Timeline, device: torch.device, answers: int = 1) -> None:
        self._answers = answers
        pinned = device.type == "cuda"
        self.rows: list[EpochRow] = []
        self.failed: tuple[str, int] | None = None
        """Which loss is not finite, and its step, from 0; `Trainer` says why it may be."""
        self._timeline = timeline
        self._first, self._settled = timeline.total_steps, 0
        self._losses = torch.empty(timeline.total_steps, dtype=torch.float32, pin_memory=pinned)
        self._correct = torch.empty(len(timeline.epochs), dtype=torch.int64, pin_memory=pinned)
        self._queued: deque[tuple[Epoch, float, Lap]] = deque()

    def keep(self, epoch: Epoch, losses: torch.Tensor, correct: torch.Tensor, learning_rate: float, lap: Lap) -> None:
        """Queue the copies of an epoch's metrics at its end: the `losses` of its steps, float32 `[steps]` or more, each
        summed over its batch, and the number of `correct` answers, int64 `[1]`. Called within the block that `lap` ends
        with."""
        self._losses_of(epoch).copy_(losses[: epoch.steps], non_blocking=True)
        self._correct[epoch.number : epoch.number + 1].copy_(correct, non_blocking=True)
        self._queued.append((epoch, learning_rate, lap))

    def settle(self, wait: bool) -> list[EpochRow]:
        """Return all rows, up to the last epoch that the device has finished, or that was kept if `wait`. Raises
        NonFiniteLoss for an epoch with a loss that is not finite."""
        while self._queued and (wait or self._queued[0][2].over):
            epoch, learning_rate, lap = self._queued.popleft()
            seconds = lap.seconds  # waits: from here on the copies are there
            losses = self._losses_of(epoch)
            self._refuse_nonfinite(epoch, losses)
            self.rows.append(
                EpochRow(
                    epoch=epoch.number + 1,
                    train_loss=losses.sum().item() / epoch.images,
                    train_accuracy=self._correct[epoch.number].item() / (epoch.images * self._answers),
                    test_accuracy=None,
                    seconds=seconds,
                    learning_rate=learning_rate,
                    images=sum(before.images for before in self._timeline.epochs[: epoch.number + 1]),
                )
            )
        return self.rows

    def has_reached(self, train_accuracy: float | None) -> bool:
        """Return True if the last epoch reached this training accuracy."""
        trained = [row for row in self.rows[-1:] if row.epoch]
        return train_accuracy is not None and any((row.train_accuracy or 0) >= train_accuracy for row in trained)

    def _losses_of(self, epoch: Epoch) -> torch.Tensor:
        return self._losses[epoch.first_step : epoch.end]

    def mean_loss(self, step: int) -> float | None:
        """Return the mean loss of the batch of `step`, from 0; None where it is not known: not settled, or of a process
        before this one."""
        if not self._first <= step < self._settled:
            return None
        epoch = next(epoch for epoch in self._timeline.epochs if step < epoch.end)
        return self._losses[step].item() / epoch.stage_of(step).images

    def _refuse_nonfinite(self, epoch: Epoch, losses: torch.Tensor) -> None:
        self._first, self._settled = min(self._first, epoch.first_step), epoch.end
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            loss, step = losses[bad[0]].item(), epoch.first_step + int(bad[0].item())
            where = f"step {step + 1} of {self._timeline.total_steps} (epoch {epoch.number + 1})"
            self.failed = f"the loss became {loss} at {where}", step
            raise NonFiniteLoss(self.failed[0])
