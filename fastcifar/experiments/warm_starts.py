"""The common part of the experiments on warm starts (Ash and Adams 2020): options, and three ways to start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.experiments.experiment import Experiment, Found, Job
from fastcifar.experiments.result import known
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.recipes.declare import setting
from fastcifar.report import Summary
from fastcifar.start import ShrinkPerturb, Start, WarmStart, check_factors

if TYPE_CHECKING:
    from fastcifar.training import RunRecord

WARM, COLD, SHRINK = "warm", "cold", "shrink-perturb"
"""The arms: the weights of the round before, fresh ones, and a mixture of both."""


@dataclass(frozen=True)
class WarmStarts(Experiment[Found]):
    """The base of these experiments."""

    recipe: Recipe = dataclasses.field(default_factory=lambda: get_recipe("warmstart-resnet18"))
    runs: int = setting(1, at_least=1, at_most=100_000)
    """Do all of it N times, with seeds S, S+1, ..."""
    subset_seed: int = setting(0, at_least=0, below=2**32)
    """Names the choice of images, for --train-size and for the rounds."""
    shrink: float = setting(0.4, at_least=0, at_most=1)
    """Shrink-perturb multiplies the weights by this."""
    perturb: float = setting(0.1, at_least=0)
    """Shrink-perturb adds this times fresh weights."""
    until_train_accuracy: float | None = setting(None, above=0, at_most=1)
    """End a run after the first epoch with this running training accuracy, a fraction; --epochs are then the most."""
    eval_every: int = setting(0, at_least=0, unit="epochs")
    """Epochs between evaluations, which make the curve; 0: only at the end."""

    group: ClassVar[str] = "warm-start"
    extending = ("seed", "runs")

    def _check(self) -> None:
        super()._check()
        check_factors(self.shrink, self.perturb)

    @classmethod
    def quick_default(cls) -> Recipe | None:
        return dataclasses.replace(get_recipe("warmstart-narrow"), epochs=6)

    def job(self, arm: str, seed: int, **fields: Any) -> Job:
        """Return a job of this experiment, which evaluates its training images too."""
        values = {
            "recipe": self.recipe,
            "subset_seed": self.subset_seed,
            "until_train_accuracy": self.until_train_accuracy,
            "eval_every": self.eval_every,
            "evaluate_train": True,
        }
        return Job(arm, seed, **{**values, **fields})

    def start(self, arm: str, before: str | None) -> dict[str, Any]:
        """Return the fields of a job that say how `arm` starts after the job `before`; None: there is none."""
        if before is None or arm == COLD:
            return {}
        return {"after": before, "start": self._mix if arm == SHRINK else WarmStart}

    def _mix(self, weights: Path) -> Start:
        return ShrinkPerturb(weights, self.shrink, self.perturb)


def train_accuracies(records: Sequence[RunRecord]) -> list[float]:
    """Return the accuracies of runs on their own training images at the end."""
    return [known(record.train_split and record.train_split.accuracy) for record in records]


_EQUAL = 1e-9
"""Accuracies differ by a share of the images, or by rounding."""


def doubts(gaps: Mapping[str, Summary]) -> list[str]:
    """Return what a reader must know of results that do not show the paper's claim, that cold starts end higher:
    `gaps[name]` is the accuracy of cold less that of warm starts of this network and optimizer."""
    found: dict[str, list[str]] = {}
    for name, gap in gaps.items():
        low, high = gap.interval or (0.0, 0.0)
        if gap.n == 1:
            what = "the warm start ends higher, against the paper's claim" if gap.mean < 0 else "no interval"
            said = f"one seed says little of the claim that cold starts end higher ({what}): more by --runs N"
        elif gap.std is not None and gap.std < _EQUAL:
            said = (
                "the gap is the same with every seed, which says nothing of how others differ: more seeds by --runs N"
            )
        elif high < 0:
            said = "warm starts end higher, against the paper's claim"
        elif low <= 0:
            said = "the interval includes 0, which does not show that cold starts end higher: more seeds by --runs N"
        else:
            continue
        found.setdefault(said, []).append(name)
    return [": ".join(filter(None, (", ".join(names), said))) for said, names in found.items()]
