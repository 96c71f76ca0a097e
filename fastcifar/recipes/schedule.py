"""The section `schedule` of a recipe: the learning rate over a training."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import ClassVar

from fastcifar.errors import UserError
from fastcifar.recipes.declare import Checked, setting

TORCH_SCHEDULERS = (
    *("StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR"),
    *("CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR"),
)
"""The classes of torch.optim.lr_scheduler whose rates follow from the step and from plain arguments. Left out: those
that take functions (LambdaLR, MultiplicativeLR) or other schedulers (SequentialLR, ChainedScheduler)."""

PLATEAU = "ReduceLROnPlateau"
"""The one class whose rates follow from losses during the training."""

LENGTHS = ("step_size", "milestones", "T_max", "total_steps", "T_0", "total_iters", "step_size_up", "step_size_down")
"""Arguments of these classes that are lengths of time, or several with commas between."""
_UNITS = ("epochs", "steps", "%")


def with_unit(option: str, unit: str = "epochs") -> str:
    """Return a word NAME=VALUE of `Schedule.options` with `unit` after each length that has none."""
    name, _, value = option.partition("=")
    if name not in LENGTHS:
        return option
    return f"{name}=" + ",".join(part + unit * (part != "" and not part.endswith(_UNITS)) for part in value.split(","))


def length(text: str) -> tuple[float, str]:
    """Return the number and the unit of a length of time. Raises ValueError unless it is finite and above 0."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    number = float(text.removesuffix(unit))
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number, unit


@dataclass(frozen=True)
class Schedule(Checked):
    """The learning rate over a training, as multiples of `optimizer.lr`: piecewise linear between knots, where step t
    of T, from 0, is at (t + 1) / T; or one of torch's (LinearLR from 1 to 0 in 100% is 1 - t / T, as in airbench)."""

    section: ClassVar[str] = "schedule"

    knots: tuple[float, ...] = (0.0, 0.2, 0.8, 1.0)
    """Places in the training, as rising fractions of its steps, from 0 to 1. Only read with name linear."""
    values: tuple[float, ...] = setting((0.0, 1.0, 0.1, 0.1), at_least=0, at_most=1e4)
    """Multiple of the peak rate at each knot. Only read with name linear."""
    name: str = setting("linear", choices=("linear", *TORCH_SCHEDULERS, PLATEAU))
    """linear: piecewise linear between the knots. Else a class of torch.optim.lr_scheduler, such as CosineAnnealingLR
    or OneCycleLR, which multiplies `optimizer.lr` and is stepped after every training step. ReduceLROnPlateau is
    stepped after every epoch with its log-loss on the validation images or, where there are none, on the held-out or
    test images: it needs an evaluation of every epoch."""
    options: tuple[str, ...] = ()
    """Arguments of that class, each a word NAME=VALUE, as in step_size=7. A value is a number, a word, true, false, or
    several of these with commas between. Lengths of time, such as step_size and milestones, count epochs (7 or
    7epochs), of mean length where select or early_batches make it differ, unless they are a number of steps (7steps) or
    a share of the training (30%); in a TOML file they need a unit. They are above 0, and rounded to 1 step or more.
    ReduceLROnPlateau's patience and cooldown are numbers of epochs, without a unit. ExponentialLR's gamma is that of
    every step. Defaults: T_max and total_steps are all of the training, max_lr is `optimizer.lr`, others torch's."""
    warmup: float = setting(0.0, at_least=0, below=1)
    """Share of the training in which the rate rises linearly from 0 to the first of that class, which has the steps
    that are left, as in SequentialLR; 0: none. Lengths count from its end. With name linear the knots say it; not with
    ReduceLROnPlateau."""

    def _check(self) -> None:
        self._require("options", not (self.options and self.name == "linear"), "none with schedule.name linear")
        has_none = self.name in ("linear", PLATEAU)
        self._require("warmup", not (self.warmup and has_none), f"0 with schedule.name {self.name}")
        for option in self.options:
            self._require("options", re.fullmatch(r"[A-Za-z]\w*=\S+", option), "words NAME=VALUE")
            name, _, value = option.partition("=")
            try:
                for part in filter(None, value.split(",")) if name in LENGTHS else ():
                    length(part)
            except ValueError:
                self._refuse("options", f"a length above 0, as in {name}=7epochs, {name}=7steps or {name}=30%")
        object.__setattr__(self, "options", tuple(map(with_unit, self.options)))  # as it is written to files
        rising = all(a < b for a, b in itertools.pairwise(self.knots))
        complete = rising and (self.knots[:1], self.knots[-1:]) == ((0,), (1,))
        self._require("knots", complete, "rising fractions from 0 to 1")
        self._require("values", len(self.values) == len(self.knots), f"{len(self.knots)} numbers, one for each knot")

    @property
    def follows_loss(self) -> bool:
        """True if the rates follow from the loss after each epoch."""
        return self.name == PLATEAU

    def refuse_eval_every(self, epochs: int) -> None:
        """Raise UserError where the rates need evaluations more often than every so many epochs."""
        if self.follows_loss and epochs != 1:
            raise UserError(f"eval_every is {epochs}; allowed: with schedule.name {self.name} 1, every epoch")

    def __call__(self, progress: float) -> float:
        """Return the multiple of the peak rate at `progress`, a fraction of the training, with name linear; constant
        outside 0 to 1."""
        if progress <= self.knots[0]:
            return self.values[0]
        for (t0, v0), (t1, v1) in itertools.pairwise(zip(self.knots, self.values, strict=True)):
            if progress <= t1:
                return v0 + (v1 - v0) * (progress - t0) / (t1 - t0)
        return self.values[-1]
