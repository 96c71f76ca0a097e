"""Which of two recipes is better? Runs in turn on held-out images, stopped as soon as the answer is clear."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcifar.data import Dataset
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments.arms import check_runs, held_out, train_arms
from fastcifar.experiments.outcome import Diverged, known
from fastcifar.experiments.runs import SEEDS, OnProgress
from fastcifar.experiments.settings import describe_data, kept_in
from fastcifar.experiments.store import Store
from fastcifar.recipes import Recipe
from fastcifar.report.sequential import check_alpha, e_value, interval
from fastcifar.training import RunRecord

A, B = "a", "b"
METRICS: dict[str, Callable[[RunRecord], float]] = {
    "loss": lambda record: known(record.tta_loss),
    "accuracy": lambda record: known(record.tta_accuracy),
}
"""What runs are compared by: log-loss (nats) and accuracy (a fraction), both with the recipe's test-time
augmentation."""


@dataclass(frozen=True)
class Difference:
    """B's results less A's, pair by pair."""

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    """Of the mean; valid however often it is looked at. None with too few pairs for any."""
    e_value: float
    """Evidence against no difference; a difference is seen when it reaches 1 / alpha."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    settings: dict[str, Any]
    """What the runs were made with; `by` and `alpha` are the rule's."""
    records: dict[str, list[RunRecord]]
    """`records["a"][pair]` and `records["b"][pair]`."""

    @property
    def n(self) -> int:
        """Pairs of runs."""
        return len(self.records[A])

    def difference(self, metric: str) -> Difference:
        """Of `metric`, "loss" or "accuracy"."""
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
    def verdict(self) -> str:
        """The answer in a line."""
        by = self.settings["by"]
        runs = f"{self.n} run{'s' * (self.n > 1)} of each"
        said = f"{by} of B less A {_said(by, self.difference(by).mean)}, {_interval(by, self.difference(by).interval)}"
        if self.better is None:
            return f"no difference seen in {runs} ({said})"
        return f"{self.better.upper()} better, after {runs} ({said})"

    @property
    def time_ratio(self) -> float:
        """B's training time over A's, all runs together."""
        return sum(b.train_seconds for b in self.records[B]) / sum(a.train_seconds for a in self.records[A])

    def to_dict(self) -> dict[str, Any]:
        """All of it as data, ready for JSON."""
        results = {
            arm: {name: list(map(of, records)) for name, of in METRICS.items()}
            | {"train_seconds": [record.train_seconds for record in records]}
            for arm, records in self.records.items()
        }
        differences = {metric: dataclasses.asdict(self.difference(metric)) for metric in METRICS}
        found = {"n": self.n, "better": self.better, "verdict": self.verdict, "time_ratio": self.time_ratio}
        return {**self.settings, **found, "differences": differences, "results": results}

    def lines(self) -> list[str]:
        """The differences and the times, a line each."""
        level = f"{100 * (1 - self.settings['alpha']):.6g}% interval"
        lines = [f"{'B less A':<12}{'mean':>12}  {level + ', valid at any n':<36}{'evidence':>10}"]
        for metric in METRICS:
            difference = self.difference(metric)
            shown = _interval(metric, difference.interval)
            lines.append(f"{metric:<12}{_said(metric, difference.mean):>12}  {shown:<36}{difference.e_value:10.3g}")
        return [*lines, f"{'time':<12}{self.time_ratio:11.3f}x"]


def compare(
    a: Recipe,
    b: Recipe,
    dataset: Dataset,
    runs: int = 20,
    folder: str | Path | None = None,
    *,
    holdout: int = 5000,
    by: str = "loss",
    alpha: float = 0.05,
    seed: int = 0,
    device: str | torch.device = "auto",
    on_progress: OnProgress | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Train `a` and `b` in turn, with the same seeds, at most `runs` times each, and stop as soon as their difference
    by "loss" or "accuracy" is clear.

    The rule: stop when the t-test's mixture e-process (see `fastcifar.report.sequential`) of the paired differences
    reaches 1 / `alpha`. The chance to see a difference where there is none is then at most `alpha` however often one
    looks, and stays so if a finished comparison goes on with more `runs`. Log-loss spreads less than accuracy does, but
    changes with what makes a network surer of itself, such as label smoothing, too.

    Evaluated are `holdout` training images, which are not trained on (0: the test split; a dataset with images held out
    already is taken as it is). Where `a` and `b` are the same recipe, B's seeds are others, or the runs would be equal.
    Finished runs are kept in `folder`, with results.json, and not trained again when the same comparison is called with
    it again. Raises UserError for bad input and NonFiniteLoss where a run diverges.
    """
    check_runs(runs, seed)
    check_alpha(alpha)
    if by not in METRICS:
        raise UserError(f"by is {by!r}; allowed: {', '.join(METRICS)}")
    dataset = held_out(dataset, holdout)
    offset = SEEDS if a == dataclasses.replace(b, name=a.name) else 0
    recipes = {A: a, B: b}
    settings = {
        "experiment": "compare",
        **{arm: dataclasses.asdict(recipe) for arm, recipe in recipes.items()},
        **describe_data(dataset, device),
        "by": by,
        "alpha": alpha,
        "seed": seed,
    }
    plan: list[tuple[str, int]] = []
    for number in range(runs):
        pair = [(A, seed + number), (B, seed + number + offset)]
        plan += reversed(pair) if number % 2 else pair  # neither is always the first
    comparison = Comparison(settings, {A: [], B: []})
    with kept_in(folder) as place:
        store = Store(place, settings)
        for arm, run_seed, outcome in train_arms(recipes, dataset, plan, store, device, on_progress, on_step):
            if isinstance(outcome, Diverged):
                raise NonFiniteLoss(f"{arm.upper()} with seed {run_seed}: {outcome.reason}")
            comparison.records[arm].append(outcome)
            pairs = {len(records) for records in comparison.records.values()}
            if len(pairs) == 1:
                store.write("results.json", json.dumps(comparison.to_dict(), indent=2) + "\n")
                if comparison.better:
                    break
    return comparison


def _said(metric: str, value: float) -> str:
    return f"{100 * value:+.3f} points" if metric == "accuracy" else f"{value:+.5f}"


def _interval(metric: str, bounds: tuple[float, float] | None) -> str:
    if bounds is None:
        return "no interval yet"
    return " to ".join(_said(metric, bound) for bound in bounds)
