"""The section `schedule` of a recipe: the learning rate over a training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import Checked, setting

TORCH_SCHEDULERS = (
    *("StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR"),
    *("CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR"),
)
"""The classes of torch.optim.lr_scheduler whose rates follow from the step and from arguments that can be written down.
Not among them: those that ask for functions (LambdaLR, MultiplicativeLR) or for other schedulers (SequentialLR,
ChainedScheduler), and ReduceLROnPlateau, which asks for losses as they come."""


@dataclass(frozen=True)
class Schedule(Checked):
    """The learning rate over a training: piecewise linear between knots, as multiples of `optimizer.lr`, step t of T,
    from 0, being at (t + 1) / T; or one of torch's (LinearLR from 1 to 0 in 100% is 1 - t / T, as airbench has it)."""

    section: ClassVar[str] = "schedule"

    knots: tuple[float, ...] = (0.0, 0.2, 0.8, 1.0)
    """Places in the training, as fractions of its epochs: rising, from 0 to 1. Only read with name linear."""
    values: tuple[float, ...] = setting((0.0, 1.0, 0.1, 0.1), at_least=0)
    """The multiple of the peak rate at each knot. Only read with name linear."""
    name: str = setting("linear", choices=("linear", *TORCH_SCHEDULERS))
    """linear: piecewise linear between the knots. Else a class of torch.optim.lr_scheduler, such as CosineAnnealingLR
    or OneCycleLR, stepped after every training step; what it multiplies is `optimizer.lr`."""
    options: tuple[str, ...] = ()
    """That class's arguments, each a word NAME=VALUE; a value is a number, a word, true, false, a share of the
    training's steps such as 30%, or several with commas between. T_max and total_steps are all steps, max_lr is
    `optimizer.lr` and all others torch's defaults unless given here."""

    def _check(self) -> None:
        self._require("options", not (self.options and self.name == "linear"), "none with schedule.name linear")
        for option in self.options:
            self._require("options", re.fullmatch(r"[A-Za-z]\w*=\S+", option), "words NAME=VALUE")
        rising = all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
        self._require(
            "knots",
            len(self.knots) >= 2 and rising and self.knots[0] == 0 and self.knots[-1] == 1,
            "rising fractions from 0 to 1",
        )
        self._require("values", len(self.values) == len(self.knots), f"{len(self.knots)} numbers, one for each knot")

    def __call__(self, progress: float) -> float:
        """The multiple of the peak rate at `progress`, a fraction of the training, with name linear; constant outside 0
        to 1."""
        knots, values = self.knots, self.values
        if progress <= knots[0]:
            return values[0]
        for (t0, v0), (t1, v1) in zip(
            zip(knots, values, strict=True), zip(knots[1:], values[1:], strict=True), strict=False
        ):
            if progress <= t1:
                return v0 + (v1 - v0) * (progress - t0) / (t1 - t0)
        return values[-1]
