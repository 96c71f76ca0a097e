"""The curvature of the loss: what limits the learning rate (Page, How to train your ResNet 7: Batch norm, 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch.func import grad, vjp

from fastcifar.diagnose.diagnosis import Diagnosis, Found, known
from fastcifar.diagnose.snapshot import Snapshot
from fastcifar.host import TORCH
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.record import EpochRow
from fastcifar.report import Figure, Line

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

_LEAST, _MOST, _CLOSE = 10, 30, 0.01
"""Products with the Hessian, and the relative change of the eigenvalue after which there are no more. At first it may
hardly change where the first vector has next to nothing of the right one."""


@dataclass(frozen=True, eq=False, repr=False)
class Curvature(Found):
    """The largest eigenvalue of the Hessian of the mean loss by all parameters that train, on one batch of training
    images, not augmented, with the batch norms in training mode. Gradient descent is stable at rates below 2 over it.
    A loss of the user's own is not looked at: it is the recipe's cross-entropy with label smoothing."""

    kind: ClassVar[str] = "curvature"
    axes: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **Found.axes,
        "rate": ("moments",),
        "eigenvalue": ("moments",),
    }
    rate: np.ndarray
    """float64 `[M]`: the optimizer's learning rate of weights in the last step."""
    eigenvalue: np.ndarray
    """float64 `[M]`."""

    def figures(self) -> dict[str, Figure]:
        steps = self.steps.tolist()
        limit, rate = known(2 / np.where(self.eigenvalue > 0, self.eigenvalue, np.nan)), known(self.rate)
        lines = (Line(steps, limit, 0, "2 / largest eigenvalue of the Hessian"), Line(steps, rate, 1, "learning rate"))
        return {"rate": Figure("step", "rate", lines, log_y=True, title="Curvature of the loss")}


class DiagnoseCurvature(Diagnosis[Curvature]):
    """A listener that measures the curvature of the loss: `curvature.found` is `Curvature`.

    images: how many of the training images the loss is of, the first ones.

    It looks before the first step and at the ends of epochs, by power iteration on a network of its own: up to 30 times
    two passes forward and back. The other arguments are those of `Diagnosis`. Raises UserError for a number out of
    range.
    """

    found_class = Curvature

    def __init__(self, file: str | Path | None = None, moments: int = 32, images: int = 128) -> None:
        super().__init__(file, moments)
        self.images = checked("images", images, int, Declaration(at_least=1))

    @TORCH.applied()
    def on_start(self, trainer: Trainer) -> None:
        self._trainer, self._snapshot = trainer, Snapshot(trainer, self.images)
        for norm in self._snapshot.norms:
            norm.track_running_stats = False  # the statistics of the batch, which are not kept
        self.begin(trainer, (), images=len(self._snapshot))
        self._dues = {*self.dues(trainer.timeline)}
        if not self._found:
            self._measure(np.nan)

    def on_epoch(self, row: EpochRow) -> None:
        step = self._trainer.state.step
        if step in self._dues and step != self._found[-1][0]:
            self._measure(self._trainer.state.optimizer.learning_rate(step - 1))

    @TORCH.applied()
    def _measure(self, rate: float) -> None:
        with self._snapshot.loaded():
            value = largest_eigenvalue(self._snapshot.loss, self._snapshot.trained)
        self.note(self._trainer.state.step, rate=rate, eigenvalue=value)


Tensors = dict[str, torch.Tensor]


def largest_eigenvalue(loss: Callable[[Tensors], torch.Tensor], at: Tensors) -> float:
    """Return the largest eigenvalue of the Hessian of `loss` at the tensors `at`, by power iteration; NaN where it is
    not finite. The first vector is random, and the same at every call."""
    product = vjp(grad(loss), at)[1]

    def times(vector: Tensors, shift: float) -> Tensors:
        return {name: each - shift * vector[name] for name, each in product(vector)[0].items()}

    value = _power(lambda vector: times(vector, 0.0), at)
    if value < 0:  # the largest in size, and all others are above it
        return value + _power(lambda vector: times(vector, value), at)
    return value


def _power(times: Callable[[Tensors], Tensors], like: Tensors) -> float:
    """Return the eigenvalue that is the largest in size of a symmetric matrix, which is given by its products."""
    generator = torch.Generator().manual_seed(0)
    vector = {name: torch.randn(each.shape, generator=generator).to(each) for name, each in like.items()}
    value, before = 0.0, np.nan
    for number in range(_MOST):
        size = _dot(vector, vector) ** 0.5
        if not np.isfinite(size) or size == 0:
            return 0.0 if size == 0 else np.nan
        vector = {name: each / size for name, each in vector.items()}
        further = times(vector)
        value, before = _dot(vector, further), value
        if number >= _LEAST and abs(value - before) <= _CLOSE * abs(value):
            break
        vector = further
    return value


def _dot(first: Tensors, second: Tensors) -> float:
    return sum((each.double() * second[name].double()).sum().item() for name, each in first.items())
