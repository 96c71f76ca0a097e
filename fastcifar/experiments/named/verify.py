"""A check that tricks do something: a recipe, cut short, against the same without each of its tricks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.result import Diverged, Failed, Outcome, Result, known
from fastcifar.recipes import Recipe, batches, change, quick
from fastcifar.recipes.tricks import TTA, choose_tricks, refuse_without_tricks
from fastcifar.report import Table

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.training import RunRecord

LEAST_STEPS, LEAST_EPOCHS = 20, 10
LEFT_OVER = 17
"""Images beyond whole batches, which an epoch drops or takes a smaller step for."""
FULL, AGAIN = "full", "again"
"""The arms with all tricks; that without one is called after it."""


@experiment("verify")
@dataclass(frozen=True)
class Verify(Experiment["Verification"]):
    """Check that every trick of a recipe changes the losses of a training of some 20 steps.

    Compared are the losses of all epochs and of the final evaluation, on a few held-out images; test-time augmentation
    is compared with the plain evaluation of one run. Two trainings with all tricks say how much losses differ without
    any cause, which on a GPU is a little. Ends with status 1 where a trick changes nothing; with --quick in seconds.
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    only: tuple[str, ...] = ()
    """The tricks to switch off; none: all. An unknown one is answered with the recipe's."""

    holdout = 64
    needed_arms = (FULL, AGAIN)
    is_kept: ClassVar[bool] = False

    def _check(self) -> None:
        super()._check()
        self._require("runs", self.runs == 1, "1, as this checks and does not measure")
        refuse_without_tricks(self.recipe, self.off)

    @classmethod
    def shorten(cls, recipe: Recipe) -> Recipe:
        """Return the recipe with smaller batches than a quick one has, ghost batches too, but as many epochs: some
        tricks begin at one."""
        small = quick(recipe)[0]
        if getattr(small.network, "ghost_batch", 0) > 8:
            small = change(small, {"network.ghost_batch": 8})
        batch_size = min(recipe.batch_size, max(16, 2 * small.ghost_batch))
        return dataclasses.replace(small, epochs=recipe.epochs, **batches(small, batch_size))

    @cached_property
    def off(self) -> dict[str, dict[str, Any]]:
        """`off[trick]`: the fields that switch it off, and their values then."""
        return choose_tricks(self.recipe, self.only)

    def jobs(self, dataset: Dataset) -> list[Job]:
        epochs, images = shorten(self.recipe, dataset.train.side)
        if len(dataset.train) < images:
            has = f"{dataset.name} has {len(dataset.train):,} training images"
            raise UserError(f"{has}; allowed: {images:,} or more, so that every stage of {self.recipe.name} occurs")
        short = dataclasses.replace(self.recipe, epochs=epochs)
        arms = {FULL: short, AGAIN: short}
        arms |= {name: change(short, values) for name, values in self.off.items() if name != TTA}
        return [Job(arm, self.seed, recipe, train_size=images) for arm, recipe in arms.items()]

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Verification:
        return Verification(self, settings, outcomes)


@dataclass(frozen=True)
class VerifiedTrick:
    """The effect of a trick on a short training."""

    trick: str
    off: dict[str, Any]
    """The fields that switch it off, and their values then."""
    change: float
    """The largest relative change of a loss without it; infinite where the training diverges."""
    noise: float
    """The same between two trainings with all tricks: 0 on a CPU."""

    @property
    def seen(self) -> bool:
        """True if the trick does anything: ten times as much as what has no cause."""
        return self.change > 10 * self.noise


@dataclass(frozen=True)
class Verification(Result):
    """The result of `Verify`."""

    experiment: Verify

    @property
    def n(self) -> int:
        return len(self.outcomes[AGAIN])

    @property
    def tricks(self) -> list[VerifiedTrick]:
        """The tricks, in the recipe's order."""
        full = self.outcomes[FULL][0]
        assert not isinstance(full, Failed)
        noise = _largest_change(full, self.outcomes[AGAIN][0])
        tricks = []
        for name, off in self.experiment.off.items():
            if name == TTA:
                tricks.append(VerifiedTrick(name, off, _relative(known(full.loss), known(full.tta_loss)), 0.0))
            else:
                tricks.append(VerifiedTrick(name, off, _largest_change(full, self.outcomes[name][0]), noise))
        return tricks

    @property
    def without_effect(self) -> list[str]:
        """The tricks that do nothing."""
        return [trick.trick for trick in self.tricks if not trick.seen]

    @property
    def status(self) -> int:
        return int(bool(self.without_effect))

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of data for each trick, ready for JSON; without a number where the training diverges."""
        return [
            {
                **dataclasses.asdict(trick),
                "change": trick.change if math.isfinite(trick.change) else None,
                "seen": trick.seen,
            }
            for trick in self.tricks
        ]

    def to_dict(self) -> dict[str, Any]:
        return {**self.settings, "rows": self.rows()}

    def tables(self) -> list[Table]:
        rows = []
        for trick in self.tricks:
            off = ", ".join(f"{name} = {json.dumps(value)}" for name, value in trick.off.items())
            size = f"{trick.change:.1e}" if math.isfinite(trick.change) else "diverged"
            rows.append((trick.trick, off, size, "ok" if trick.seen else "NO EFFECT"))
        run = self.outcomes[FULL][0]
        assert not isinstance(run, Failed)
        title = "Largest relative change of a loss without one trick"
        title += f" ({run.recipe.epochs:g} epoch{'s' * (run.recipe.epochs != 1)} of {run.dataset.train_size:,} images)"
        return [Table(title, ("trick", "off", "change", ""), tuple(rows))]

    def remarks(self) -> list[str]:
        without = self.without_effect
        verdict = f"without effect: {', '.join(without)}" if without else "none without effect"
        return [f"{len(self.tricks)} trick{'s' * (len(self.tricks) != 1)}, {verdict}"]


def shorten(recipe: Recipe, side: int) -> tuple[float, int]:
    """Return the epochs, not more than the recipe's, and the training images of this side that make at least
    `LEAST_STEPS` steps of it: the fewest images, as batches of early epochs and of those that leave images out, and at
    least `LEAST_EPOCHS` epochs where it has more, as some stages begin at an epoch."""
    fewest = max(2, math.ceil(1 / recipe.select.keep))
    least = max(LEAST_EPOCHS, math.floor(recipe.select.from_epoch) + 1)
    from fastcifar.training.timeline import Timeline

    return next(
        (epochs, images)
        for images in itertools.count(fewest * recipe.batch_size + LEFT_OVER, recipe.batch_size)
        for epochs in (*range(least, math.floor(recipe.epochs)), recipe.epochs)
        if Timeline(dataclasses.replace(recipe, epochs=epochs), images, side).total_steps >= LEAST_STEPS
    )


def _largest_change(full: RunRecord, other: RunRecord | Failed) -> float:
    """Return the largest relative difference between losses of the two runs."""
    if isinstance(other, Diverged):
        return math.inf
    if isinstance(other, Failed):  # which says nothing of the trick
        raise other.error(other.reason)
    return max(_relative(loss, without) for loss, without in zip(_losses(full), _losses(other), strict=True))


def _losses(record: RunRecord) -> list[float]:
    return [*(known(row.train_loss) for row in record.history), known(record.loss), known(record.tta_loss)]


def _relative(loss: float, other: float) -> float:
    return abs(other - loss) / max(abs(loss), 1e-12)
