"""Does every trick of a recipe do something? The recipe, cut short, against the same without each of its tricks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastcifar.data import Dataset
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments.arms import train_arms
from fastcifar.experiments.outcome import Diverged, known
from fastcifar.experiments.runs import OnProgress
from fastcifar.experiments.settings import kept_in
from fastcifar.experiments.store import Store
from fastcifar.recipes import Recipe, change
from fastcifar.recipes.tricks import TTA, choose_tricks
from fastcifar.report import Table
from fastcifar.training import RunRecord
from fastcifar.training.timeline import Timeline

LEAST_STEPS, LEAST_EPOCHS = 20, 10
LEFT_OVER = 17
"""Images beyond whole batches, which an epoch drops or takes a smaller step for."""
TEST_IMAGES = 64
_FULL, _AGAIN = "all", "again"


@dataclass(frozen=True)
class Effect:
    """What a trick does to a short training."""

    trick: str
    off: dict[str, Any]
    """The fields that switch it off, and their values then."""
    change: float
    """The largest relative change of a loss without it; infinite where the training diverges."""
    noise: float
    """The same between two trainings with all tricks: 0 on a CPU."""

    @property
    def seen(self) -> bool:
        """Whether the trick does anything: ten times as much as what has no cause."""
        return self.change > 10 * self.noise


@dataclass(frozen=True)
class Verification:
    """What `verify_tricks` found."""

    recipe: Recipe
    """The recipe as it was trained: with fewer epochs."""
    images: int
    """Training images."""
    effects: tuple[Effect, ...]

    @property
    def without_effect(self) -> list[str]:
        """The tricks that do nothing."""
        return [effect.trick for effect in self.effects if not effect.seen]

    def rows(self) -> list[dict[str, Any]]:
        """A row of data for each trick, ready for JSON; without a number where the training diverges."""
        return [
            {
                **dataclasses.asdict(effect),
                "change": effect.change if math.isfinite(effect.change) else None,
                "seen": effect.seen,
            }
            for effect in self.effects
        ]

    def table(self) -> Table:
        """The tricks, in the recipe's order."""
        rows = []
        for effect in self.effects:
            off = ", ".join(f"{name} = {json.dumps(value)}" for name, value in effect.off.items())
            size = f"{effect.change:.1e}" if math.isfinite(effect.change) else "diverged"
            rows.append((effect.trick, off, size, "ok" if effect.seen else "NO EFFECT"))
        epochs, title = self.recipe.epochs, "Largest relative change of a loss without one trick"
        title += f" ({epochs:g} epochs of {self.images:,} images)"
        return Table(title, ("trick", "off", "change", ""), tuple(rows))


def verify_tricks(
    recipe: Recipe,
    dataset: Dataset,
    *,
    device: str | torch.device = "auto",
    only: Sequence[str] = (),
    seed: int = 0,
    on_progress: OnProgress | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Verification:
    """Train `recipe`, cut short by `shorten`, and the same without each of its tricks (or of those in `only`), from the
    same seed, and compare the losses of all epochs and of the final evaluation, on a few held-out images.

    Test-time augmentation is compared with the plain evaluation of the one run. Two trainings with all tricks say how
    much losses differ without any cause, which on a GPU is a little.
    Raises UserError for bad input, and NonFiniteLoss where the full recipe diverges.
    """
    off = choose_tricks(recipe, only)
    epochs, images = shorten(recipe, dataset.train.side)
    short = dataclasses.replace(recipe, epochs=epochs)
    needed = images + (0 if dataset.holdout else TEST_IMAGES)
    if len(dataset.train) < needed:
        has = f"{dataset.name} has {len(dataset.train):,} training images"
        raise UserError(f"{has}; allowed: {needed:,} or more, so that every stage of {recipe.name} occurs")
    if not dataset.holdout:
        dataset = dataset.hold_out(TEST_IMAGES)
    dataset = dataset.take(images)
    arms = {_FULL: short, _AGAIN: short}
    arms |= {name: change(short, values) for name, values in off.items() if name != TTA}
    found: dict[str, RunRecord | Diverged] = {}
    with kept_in(None) as place:
        plan = [(arm, seed) for arm in arms]
        for arm, _, outcome in train_arms(arms, dataset, plan, Store(place, {}), device, on_progress, on_step):
            found[arm] = outcome
            if arm == _FULL and isinstance(outcome, Diverged):
                raise NonFiniteLoss(f"the full recipe: {outcome.reason}")
    full = found.pop(_FULL)
    assert isinstance(full, RunRecord)
    noise = _largest_change(full, found.pop(_AGAIN))
    changes = {name: _largest_change(full, outcome) for name, outcome in found.items()}
    changes[TTA] = _relative(known(full.loss), known(full.tta_loss))
    effects = [Effect(name, off[name], changes[name], 0.0 if name == TTA else noise) for name in off]
    return Verification(short, images, tuple(effects))


def shorten(recipe: Recipe, side: int) -> tuple[float, int]:
    """Return the epochs, not more than the recipe's, and the training images of this side that make at least
    `LEAST_STEPS` steps of it: the fewest images, as batches of early epochs and of those that leave images out, and at
    least `LEAST_EPOCHS` epochs where it has more, as some stages begin at an epoch."""
    fewest = max(2, math.ceil(1 / recipe.select.keep))
    least = max(LEAST_EPOCHS, math.floor(recipe.select.from_epoch) + 1)
    return next(
        (epochs, images)
        for images in itertools.count(fewest * recipe.batch_size + LEFT_OVER, recipe.batch_size)
        for epochs in (*range(least, math.floor(recipe.epochs)), recipe.epochs)
        if Timeline(dataclasses.replace(recipe, epochs=epochs), images, side).total_steps >= LEAST_STEPS
    )


def _largest_change(full: RunRecord, other: RunRecord | Diverged) -> float:
    """The largest relative difference between losses of the two runs."""
    if isinstance(other, Diverged):
        return math.inf
    return max(_relative(loss, without) for loss, without in zip(_losses(full), _losses(other), strict=True))


def _losses(record: RunRecord) -> list[float]:
    return [*(known(row.train_loss) for row in record.history), known(record.loss), known(record.tta_loss)]


def _relative(loss: float, other: float) -> float:
    return abs(other - loss) / max(abs(loss), 1e-12)
