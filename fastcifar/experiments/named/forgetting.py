"""What limits the rate of small batches, and what that of large ones? (Page, How to train your ResNet 2: Mini-batches,
2018.)"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.result import Failed, Outcome, SeparateArms
from fastcifar.recipes import Recipe, change, label, with_batch_size
from fastcifar.recipes.declare import declaration, setting
from fastcifar.report import Figure, Line, Summary, Table, counted, summarize
from fastcifar.report.tables import nats

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.diagnose import Forgetting
    from fastcifar.experiments.store import Store

FORGETTING = "forgetting"
_CONSTANT = {
    "schedule.name": "linear",
    "schedule.options": (),
    "schedule.knots": (0.0, 0.2, 1.0),
    "schedule.values": (0.0, 1.0, 1.0),
}


@experiment("forgetting")
@dataclass(frozen=True)
class ForgettingGrid(Experiment["Forgotten"]):
    """Find what limits the rate at each batch size: that the network forgets, or the curvature of the loss.

    Trained is the recipe at each batch size and each rate, which rises for the first fifth of the training and then
    stays, as a network whose rate falls to 0 forgets nothing more. At the end the log-loss is measured on the images
    of the last quarter of the epoch, on those of its first quarter and on fresh ones, in training mode. Rates are by
    image: a batch of twice as many has twice the rate. Where batch sizes agree at a rate by image, forgetting limits
    it: as much is learned from every image, and lost again. Where the larger batches lose more, it is the curvature
    that their larger steps meet.
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    runs: int = setting(3, at_least=1, at_most=100_000)
    """Runs of each batch size and rate."""
    batch_sizes: tuple[int, ...] = setting((128, 512), at_least=1)
    """The batch sizes, whose rates are in proportion to them."""
    rates: tuple[float, ...] = setting((0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0), above=0)
    """Rates by image, as multiples of the recipe's own."""

    holdout = 5000
    extending = ("runs", "batch_sizes", "rates")

    def _check(self) -> None:
        super()._check()
        for name in ("batch_sizes", "rates"):
            values = getattr(self, name)
            distinct = len({f"{value:g}" for value in values})
            self._require(name, distinct == len(values) > 0, "numbers, of which no two have the same six digits")
        optimizer, epochs = self.recipe.optimizer, self.recipe.epochs
        rate = next(field for field in dataclasses.fields(optimizer) if field.name == "lr")
        if not declaration(rate).with_batch:
            said = f"the rate of {optimizer.kind} is not in proportion to the batch"
            raise UserError(f"{said}; allowed: an optimizer whose is, such as {Recipe().optimizer.kind}")
        if epochs != int(epochs):
            raise UserError(f"epochs is {epochs:g}; allowed: a whole number, as the last epoch is looked at")
        _ = self.recipes  # which refuses batches that the recipe cannot have

    @property
    def recipes(self) -> dict[tuple[int, float], Recipe]:
        """The recipes by batch size and rate."""
        constant = change(self.recipe, _CONSTANT)
        return {(size, rate): with_batch_size(constant, size, rate) for size in self.batch_sizes for rate in self.rates}

    def trained_recipes(self) -> dict[str, Recipe]:
        return {_arm(*point): recipe for point, recipe in self.recipes.items()}

    @property
    def subject(self) -> str:
        return label(self.recipe)

    def jobs(self, dataset: Dataset) -> list[Job]:
        recipes = self.trained_recipes()
        return [
            Job(arm, seed, recipe, diagnose=(FORGETTING,)) for seed in self.seeds for arm, recipe in recipes.items()
        ]

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Forgotten:
        return Forgotten(self, settings, outcomes)


def _arm(batch_size: int, rate: float) -> str:
    return f"batch-{batch_size}/{rate:g}"


@dataclass(frozen=True)
class Losses:
    """What was measured at the end of one run, mean log-losses in nats."""

    newest: float
    """On images of the last quarter of the epoch."""
    oldest: float
    """On images of its first quarter."""
    fresh: float
    """On images that are never trained on."""
    forgotten: float
    """oldest - newest."""


@dataclass(frozen=True)
class Forgotten(SeparateArms):
    """The result of `ForgettingGrid`."""

    experiment: ForgettingGrid
    losses: dict[str, list[Losses]] = dataclasses.field(default_factory=dict)
    """`losses[arm]`, of the runs that did not fail, in the order of the seeds."""

    def add(self, job: Job, outcome: Outcome, store: Store) -> None:
        super().add(job, outcome, store)
        if not isinstance(outcome, Failed):
            found = cast("Forgetting | None", store.found(job.key, FORGETTING))
            values: Sequence[float] = [math.nan] * 4  # where the file could not be written
            if found:
                values = found.seen[-1, 0], found.seen[-1, -1], found.fresh[-1], found.forgotten[-1]
            self.losses.setdefault(job.arm, []).append(Losses(*map(float, values)))

    def summary(self, batch_size: int, rate: float, name: str) -> Summary | None:
        """Return mean and interval of a field of `Losses` over the runs that have it; None where none has."""
        found = [getattr(each, name) for each in self.losses.get(_arm(batch_size, rate), ())]
        finite = [value for value in found if math.isfinite(value)]
        return summarize(finite) if finite else None

    def best(self, batch_size: int) -> float | None:
        """Return the rate by image at which this batch size has the lowest mean loss on fresh images, of those of which
        no run failed; None where there is none."""
        sound = [rate for rate in self.experiment.rates if not self.failed_of(_arm(batch_size, rate))]
        fresh = {rate: each.mean for rate in sound if (each := self.summary(batch_size, rate, "fresh"))}
        return min(fresh, key=fresh.__getitem__) if fresh else None

    def to_dict(self) -> dict[str, Any]:
        points = [
            {
                "batch_size": size,
                "rate_by_image": rate,
                "lr": recipe.optimizer.lr,
                **{name: (each := self.summary(size, rate, name)) and dataclasses.asdict(each) for name in _FIELDS},
            }
            for (size, rate), recipe in self.experiment.recipes.items()
        ]
        best = {str(size): self.best(size) for size in self.experiment.batch_sizes}
        return {**self.settings, "seeds": self.seeds, "points": points, "best_rate_by_image": best, **self.counts}

    def tables(self) -> list[Table]:
        rows = []
        for (size, rate), recipe in self.experiment.recipes.items():
            words = self.failed_words(_arm(size, rate))
            summaries = [self.summary(size, rate, name) for name in _FIELDS]
            values = ["-" if each is None else nats(each) for each in summaries]
            rows.append((f"{size}", f"{rate:g}", f"{recipe.optimizer.lr:.4g}{words}", *values))
        heads = ("batch", "rate by image", "rate", "last quarter", "first quarter", "fresh", "forgotten")
        return [Table(f"Log-loss at the end, at a constant rate ({counted(self.n)})", heads, tuple(rows))]

    def remarks(self) -> list[str]:
        best = [(size, rate) for size in self.experiment.batch_sizes if (rate := self.best(size)) is not None]
        words = ", ".join(f"batch {size} at {rate:g}" for size, rate in best)
        lines = (
            [f"lowest log-loss on fresh images, by multiples of the recipe's rate by image: {words}"] if best else []
        )
        ends = {min(self.experiment.rates), max(self.experiment.rates)}
        if any(rate in ends for _, rate in best) and len(self.experiment.rates) > 1:
            lines.append("the lowest is at an end of the rates: more --rates")
        return lines + super().remarks()

    def figures(self) -> dict[str, Figure]:
        rates = sorted(self.experiment.rates)
        losses, forgotten = [], []
        for color, size in enumerate(self.experiment.batch_sizes):
            for name, said, faint in (("fresh", "fresh", False), ("newest", "last quarter", True)):
                losses.append(self._line(size, rates, name, color, f"batch {size}, {said}", faint))
            forgotten.append(self._line(size, rates, "forgotten", color, f"batch {size}", False))
        x = "learning rate by image, the recipe's own: 1"
        return {
            "loss": Figure(x, "log-loss (nats)", tuple(losses), log=True),
            "forgotten": Figure(x, "forgotten within an epoch (nats)", tuple(forgotten)),
        }

    def _line(self, size: int, rates: list[float], name: str, color: int, label: str, faint: bool) -> Line:
        found = [self.summary(size, rate, name) for rate in rates]
        means, intervals = [each and each.mean for each in found], [each and each.interval for each in found]
        return Line(rates, means, color, label, faint=faint, intervals=() if faint else intervals)


_FIELDS = tuple(each.name for each in dataclasses.fields(Losses))
