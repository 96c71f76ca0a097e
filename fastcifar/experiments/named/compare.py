"""Comparison of two recipes: runs in turn on held-out images, stopped as soon as the answer is clear."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastcifar.experiments.experiment import SEEDS, Experiment, Job, experiment
from fastcifar.experiments.result import Outcome, Result, known
from fastcifar.recipes import Recipe
from fastcifar.recipes.declare import setting
from fastcifar.report import Table
from fastcifar.report.sequential import e_value, interval

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.training import RunRecord

A, B = "a", "b"
METRICS: dict[str, Callable[[RunRecord], float]] = {
    "loss": lambda record: known(record.tta_loss),
    "accuracy": lambda record: known(record.tta_accuracy),
}
"""The measures that runs are compared by: log-loss (nats) and accuracy (a fraction), both with the recipe's test-time
augmentation."""


@experiment("compare")
@dataclass(frozen=True)
class Compare(Experiment["Comparison"]):
    """Find the better of two recipes, with no more runs than it takes.

    A and B are trained in turn, with the same seeds, and evaluated on held-out images, until one is seen to be better.
    It stops when an anytime-valid t-test of the paired differences (the t-mixture e-process of Lai 1976 and Wang and
    Ramdas 2024) is sure enough, with --alpha 0.05 after five pairs at the soonest. The chance to see a difference where
    there is none is at most --alpha however often one looks, and where the same command goes on with more runs. Where A
    and B are the same recipe, B's seeds are others, or the runs would be equal.

    The flags of a recipe's fields change both; --a-set FIELD=VALUE ... and --b-set FIELD=VALUE ... change one.
    """

    a: Recipe = dataclasses.field(default_factory=Recipe)
    b: Recipe = dataclasses.field(default_factory=Recipe)
    runs: int = setting(20, at_least=1, at_most=100_000)
    """Runs of each, at most."""
    by: Literal["loss", "accuracy"] = "loss"
    """The measure that decides. Log-loss spreads less, but changes with what makes a network surer of itself, too:
    where A and B differ in label smoothing or the scale of the logits, take accuracy."""
    alpha: float = setting(0.05, above=0, below=1)
    """The chance to see a difference where there is none."""

    holdout = 5000
    needed_arms = (A, B)
    ends_early = True

    def jobs(self, dataset: Dataset) -> list[Job]:
        offset = SEEDS if self.a == dataclasses.replace(self.b, name=self.a.name) else 0
        jobs = []
        for seed in self.seeds:
            pair = [Job(A, seed, self.a), Job(B, seed + offset, self.b)]
            jobs += reversed(pair) if (seed - self.seed) % 2 else pair  # neither is always the first
        return jobs

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Comparison:
        return Comparison(self, settings, outcomes)


@dataclass(frozen=True)
class Difference:
    """B's results less A's, pair by pair."""

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    """Interval of the mean, valid however often it is looked at. None with too few pairs for any."""
    e_value: float
    """Evidence against no difference; a difference is seen when it reaches 1 / alpha."""


@dataclass(frozen=True)
class Comparison(Result):
    """The result of `Compare`. `records["a"]` and `records["b"]` are pair by pair."""

    def difference(self, metric: str) -> Difference:
        """Return the difference in `metric`, "loss" or "accuracy"."""
        of = METRICS[metric]
        pairs = zip(self.records[A], self.records[B], strict=True)
        values = tuple(of(b) - of(a) for a, b in pairs)
        alpha = self.settings["alpha"]
        return Difference(values, sum(values) / len(values), interval(values, alpha), e_value(values))

    @property
    def better(self) -> str | None:
        """The better arm, "a" or "b"; None where no difference is seen."""
        by = self.settings["by"]
        difference = self.difference(by)
        if difference.e_value < 1 / self.settings["alpha"]:
            return None
        return B if (difference.mean > 0) == (by == "accuracy") else A

    @property
    def is_settled(self) -> bool:
        return self.better is not None

    @property
    def verdict(self) -> str:
        """The answer in a line."""
        by = self.settings["by"]
        runs = f"{self.n} run{'s' * (self.n > 1)} of each"
        mean, bounds = self.difference(by).mean, self.difference(by).interval
        found = f"{by} of B less A {_in_words(by, mean)}, {_interval(by, bounds)}"
        if self.better is None:
            return f"no difference seen in {runs} ({found})"
        return f"{self.better.upper()} better, after {runs} ({found})"

    @property
    def time_ratio(self) -> float:
        """B's training time over A's, all runs together."""
        return sum(b.train_seconds for b in self.records[B]) / sum(a.train_seconds for a in self.records[A])

    def to_dict(self) -> dict[str, Any]:
        results = {
            arm: {name: list(map(of, records)) for name, of in METRICS.items()}
            | {"train_seconds": [record.train_seconds for record in records]}
            for arm, records in self.records.items()
        }
        differences = {metric: dataclasses.asdict(self.difference(metric)) for metric in METRICS}
        found = {"n": self.n, "better": self.better, "verdict": self.verdict, "time_ratio": self.time_ratio}
        return {**self.settings, **found, "differences": differences, "results": results}

    def tables(self) -> list[Table]:
        rows = []
        for metric in METRICS:
            found = self.difference(metric)
            words = _in_words(metric, found.mean), _interval(metric, found.interval), f"{found.e_value:.3g}"
            rows.append((metric, *words))
        level = f"{100 * (1 - self.settings['alpha']):.6g}% interval, valid at any n"
        rows.append(("time", f"{self.time_ratio:.3f}x", "", ""))
        return [Table(f"B less A (n={self.n})", ("", "mean", level, "evidence"), tuple(rows))]

    def remarks(self) -> list[str]:
        return [self.verdict]


def _in_words(metric: str, value: float) -> str:
    return f"{100 * value:+.3f} points" if metric == "accuracy" else f"{value:+.5f}"


def _interval(metric: str, bounds: tuple[float, float] | None) -> str:
    if bounds is None:
        return "no interval yet"
    return " to ".join(_in_words(metric, bound) for bound in bounds)
