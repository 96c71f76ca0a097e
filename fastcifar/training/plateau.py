"""`Plateau`: the rate of a training goes down where the loss after an epoch does not get better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastcifar.optim import FlatOptimizer
from fastcifar.optim.schedule import reduce_on_plateau
from fastcifar.recipes import Recipe
from fastcifar.record import EpochRow

_CHANGING = ("best", "num_bad_epochs", "cooldown_counter")
"""What torch's scheduler changes from epoch to epoch, besides the rate."""


class Plateau:
    """torch's ReduceLROnPlateau on the rates of `optimizer`, which are on the device; with any other schedule of
    `recipe` it does nothing."""

    def __init__(self, recipe: Recipe, optimizer: FlatOptimizer) -> None:
        self._recipe, self._optimizer = recipe, optimizer
        self._scheduler = reduce_on_plateau(recipe) if recipe.schedule.follows_loss else None

    def reset(self) -> None:
        """Start again at the recipe's rate."""
        if self._scheduler:
            self._scheduler = reduce_on_plateau(self._recipe)
            self._optimizer.set_rate(self.rate, 0)

    @property
    def rate(self) -> float:
        """The rate of the next step."""
        return float(self._scheduler.optimizer.param_groups[0]["lr"]) if self._scheduler else self._recipe.optimizer.lr

    def step(self, row: EpochRow, step: int) -> None:
        """Take in the loss of an epoch, on the validation images where there are any, and set the rate from `step`
        on."""
        _, loss = row.validation
        if self._scheduler and loss is not None:
            self._scheduler.step(loss)
            self._optimizer.set_rate(self.rate, step)

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes; with another schedule nothing."""
        if not self._scheduler:
            return {}
        return {"rate": self.rate, **{name: getattr(self._scheduler, name) for name in _CHANGING}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Raises KeyError, TypeError or ValueError for one that does not fit."""
        if self._scheduler:
            best, bad, cooldown = float(state["best"]), int(state["num_bad_epochs"]), int(state["cooldown_counter"])
            self._scheduler.best, self._scheduler.num_bad_epochs, self._scheduler.cooldown_counter = best, bad, cooldown
            self._scheduler.optimizer.param_groups[0]["lr"] = float(state["rate"])
            self._optimizer.set_rate(self.rate, 0)
