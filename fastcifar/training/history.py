"""`History`: what the epochs of a training came to, on its way from the device to the host."""

from __future__ import annotations

from collections import deque

import torch

from fastcifar.errors import NonFiniteLoss
from fastcifar.recipes import Recipe
from fastcifar.training.record import EpochRow
from fastcifar.training.stopwatch import Lap
from fastcifar.training.timeline import Epoch, Timeline


class History:
    """The rows of a training's epochs. Nothing waits for the device before somebody asks `settle` to: each epoch has a
    place of its own in (pinned) memory of the host, to which its metrics are copied when the device gets there, and
    which nothing overwrites."""

    def __init__(self, recipe: Recipe, timeline: Timeline, dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.rows: list[EpochRow] = []
        self._recipe, self._timeline, self._dtype = recipe, timeline, dtype
        self._losses = torch.empty(timeline.total_steps, pin_memory=pinned)
        self._correct = torch.empty(len(timeline.epochs), dtype=torch.int64, pin_memory=pinned)
        self._queued: deque[tuple[Epoch, float, Lap]] = deque()

    def keep(self, epoch: Epoch, losses: torch.Tensor, correct: torch.Tensor, learning_rate: float, lap: Lap) -> None:
        """Queue the copies of an epoch's metrics at its end: the `losses` of its steps, float32 `[steps]` or more, each
        summed over its batch, and how many answers were `correct`, int64 `[1]`. Called in the block that `lap` ends
        with."""
        self._losses_of(epoch).copy_(losses[: epoch.steps], non_blocking=True)
        self._correct[epoch.number : epoch.number + 1].copy_(correct, non_blocking=True)
        self._queued.append((epoch, learning_rate, lap))

    def settle(self, wait: bool) -> list[EpochRow]:
        """All rows, with those of the epochs that the device has ended by now; if `wait`, of all that were kept. Raises
        NonFiniteLoss for an epoch that went wrong."""
        while self._queued and (wait or self._queued[0][2].over):
            epoch, learning_rate, lap = self._queued.popleft()
            seconds = lap.seconds  # from here on the copies are there
            losses = self._losses_of(epoch)
            self._refuse_nonfinite(epoch, losses)
            self.rows.append(
                EpochRow(
                    epoch=epoch.number + 1,
                    train_loss=losses.sum().item() / epoch.images,
                    train_accuracy=self._correct[epoch.number].item() / epoch.images,
                    test_accuracy=None,
                    seconds=seconds,
                    learning_rate=learning_rate,
                    images=sum(before.images for before in self._timeline.epochs[: epoch.number + 1]),
                )
            )
        return self.rows

    def _losses_of(self, epoch: Epoch) -> torch.Tensor:
        return self._losses[epoch.first_step : epoch.end]

    def _refuse_nonfinite(self, epoch: Epoch, losses: torch.Tensor) -> None:
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            loss, step = losses[bad[0]].item(), epoch.first_step + int(bad[0].item()) + 1
            where = f"step {step} of {self._timeline.total_steps} (epoch {epoch.number + 1})"
            raise nonfinite_loss(f"the loss became {loss} at {where}", self._recipe, self._dtype)


def nonfinite_loss(what: str, recipe: Recipe, dtype: torch.dtype) -> NonFiniteLoss:
    """The error for a loss that became NaN or infinite: `what` it is and where, and the likely cause."""
    too_narrow = ", or float16 too narrow" if dtype == torch.float16 else ""
    return NonFiniteLoss(f"{what}: most likely optimizer.lr {recipe.optimizer.lr:g} is too high{too_narrow}")
