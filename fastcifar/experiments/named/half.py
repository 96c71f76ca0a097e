"""Half of the images first, then all of them: is the head start worth it? (Ash and Adams 2020, figure 1 and table 1)"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Job, experiment
from fastcifar.experiments.result import Outcome, Result, known, paired, summary
from fastcifar.experiments.warm_starts import COLD, SHRINK, WARM, WarmStarts, train_accuracies
from fastcifar.recipes.declare import setting
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, seconds, summarize

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.training import EpochRow, RunRecord

FIRST = "half"
"""The training on a part of the images, which the arms `WARM` and `SHRINK` begin with."""
NOTEBOOK = {FIRST: "half_cifar", WARM: "warm_start", COLD: "random_init", SHRINK: "shrink_perturb"}
"""Their names in the notebook teaching-on-testbeds/re_warm_start_nn, in the file of its experiment 1."""
PAIRS = ((COLD, WARM), (SHRINK, WARM), (COLD, SHRINK))
"""The differences that are the experiment's answer."""


@experiment("half", group="warm-start")
@dataclass(frozen=True)
class Half(WarmStarts["HalfResult"]):
    """Train on half of the images, then on all, from warm, fresh and mixed weights.

    The runs on all images share a seed, and so the order of their images.
    """

    fraction: float = setting(0.5, above=0, below=1)
    """Share of the images in the first round."""
    eval_every: int = setting(1, at_least=0, unit="epochs")
    """Epochs between evaluations, which make the curve; 0: only at the end."""

    quick: ClassVar[Mapping[str, Any]] = {"train_size": 1500, "eval_every": 3}

    def jobs(self, dataset: Dataset) -> list[Job]:
        size, batch_size = round(len(dataset.train) * self.fraction), self.recipe.batch_size
        if size < batch_size:
            raise UserError(f"the first round has {size} images; allowed: batch_size, {batch_size}, or more")
        jobs = []
        for seed in self.seeds:
            first = self.job(FIRST, seed, train_size=size, keep_weights=True)
            starts = {arm: self.start(arm, first.key) for arm in (WARM, COLD, SHRINK)}
            jobs += [first, *(self.job(arm, seed, round=1, keep_weights=True, **starts[arm]) for arm in starts)]
        return jobs

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> HalfResult:
        return HalfResult(self, settings, outcomes)


@dataclass(frozen=True)
class HalfResult(Result):
    """The result of `Half`. Accuracies are fractions, in the order of `seeds`."""

    def test_accuracies(self, arm: str) -> list[float]:
        """Return the accuracies at the end on the test split, without test-time augmentation."""
        return [known(record.accuracy) for record in self.records[arm]]

    def train_accuracies(self, arm: str) -> list[float]:
        """Return the accuracies at the end on a run's own training images, without augmentation."""
        return train_accuracies(self.records[arm])

    def test_difference(self, arm: str, other: str) -> Summary:
        """Return the test accuracy of `arm` less that of `other`: mean and interval of the differences seed by seed."""
        return paired(self.test_accuracies(arm), self.test_accuracies(other))

    def train_difference(self, arm: str, other: str) -> Summary:
        """Return the same of the training accuracies."""
        return paired(self.train_accuracies(arm), self.train_accuracies(other))

    @property
    def recovered(self) -> float | None:
        """The share of the mean gap from warm to cold that shrink-perturb closes; None unless the gap's interval is
        above 0, for a share of what may be nothing can be any number."""
        gap = self.test_difference(COLD, WARM)
        if gap.interval is None or gap.interval[0] <= 0:
            return None
        return self.test_difference(SHRINK, WARM).mean / gap.mean

    def to_dict(self) -> dict[str, Any]:
        arms = {
            arm: {
                "test_accuracy": summary(self.test_accuracies(arm)),
                "train_accuracy": summary(self.train_accuracies(arm)),
                "train_seconds": summary([record.train_seconds for record in self.records[arm]]),
                "epochs": [record.epochs for record in self.records[arm]],
            }
            for arm in NOTEBOOK
        }
        differences = {
            f"{arm} - {other}": {
                "test_accuracy": dataclasses.asdict(self.test_difference(arm, other)),
                "train_accuracy": dataclasses.asdict(self.train_difference(arm, other)),
            }
            for arm, other in PAIRS
        }
        return {
            **self.settings,
            "seeds": self.seeds,
            "arms": arms,
            "differences": differences,
            "recovered": self.recovered,
            **self.counts,
        }

    def notebook(self) -> dict[str, Any]:
        """Return the curves of the first seed in the form of the notebook's runs.json: percent, a 0 before the first
        epoch, None for an epoch without an evaluation, and the places that the second round is moved to the right."""
        offset = len(self.records[FIRST][0].history) + 1
        return {
            name: {
                "training_accuracy": [0, *_percents(self.records[arm][0], _train)],
                "test_accuracy": [0, *_percents(self.records[arm][0], _test)],
                "offset": 0 if arm == FIRST else offset,
            }
            for arm, name in NOTEBOOK.items()
        }

    def tables(self) -> list[Table]:
        arms = [
            (
                arm,
                percent(summarize(self.test_accuracies(arm))),
                percent(summarize(self.train_accuracies(arm))),
                f"{summarize([record.epochs for record in self.records[arm]]).mean:.4g}",
                seconds(summarize([record.train_seconds for record in self.records[arm]])),
            )
            for arm in NOTEBOOK
        ]
        differences = [
            (
                f"{arm} - {other}",
                points(self.test_difference(arm, other)),
                points(self.train_difference(arm, other)),
            )
            for arm, other in PAIRS
        ]
        n, heads = counted(self.n), ("start", f"{self.tested} accuracy", "train accuracy", "epochs", "training")
        return [
            Table(f"At the end ({n})", heads, tuple(arms)),
            Table(f"Differences in points, seed by seed ({n})", ("starts", self.tested, "train"), tuple(differences)),
        ]

    def remarks(self) -> list[str]:
        gap = self.test_difference(COLD, WARM)
        lines = [f"cold - warm: {points(gap)} points of {self.tested} accuracy, n={gap.n}"]
        if self.recovered is not None:
            lines.append(f"shrink-perturb closes {self.recovered:.0%} of the gap from warm to cold")
        return lines + super().remarks()

    def files(self) -> dict[str, str]:
        return {**super().files(), "runs.json": json.dumps(self.notebook()) + "\n"}

    def figures(self) -> dict[str, Figure]:
        """Return training and test accuracy over both rounds: a faint line for each seed, and their mean."""
        longest = max(len(record.history) for record in self.records[FIRST])
        figures = {}
        for name, column, what in (
            ("train", _train, "training accuracy, running (%)"),
            ("test", _test, f"{self.tested} accuracy (%)"),
        ):
            lines: list[Line] = []
            for arm, color, label in (
                (FIRST, 0, ""),
                (WARM, 0, f"{self.settings['fraction']:.0%} of the images, then all: warm start"),
                (COLD, 1, "all images: random initialization"),
                (SHRINK, 2, "all images: shrink and perturb"),
            ):
                lines += _lines(self.records[arm], column, 0 if arm == FIRST else longest, color, label)
            figures[name] = Figure("epoch", what, tuple(lines), dashed_at=longest + 0.5)
        return figures


_Column = Callable[["EpochRow"], "float | None"]
_train: _Column = attrgetter("train_accuracy")
_test: _Column = attrgetter("test_accuracy")


def _percents(record: RunRecord, column: _Column) -> list[float | None]:
    """Return one of the columns of a run's history in percent, None where an epoch has no value."""
    values = map(column, record.history)
    return [None if value is None else 100 * value for value in values]


def _lines(records: Sequence[RunRecord], column: _Column, offset: int, color: int, label: str) -> list[Line]:
    """Return a faint line for each of several runs, and their mean up to where the first of them ended."""
    curves = [_percents(record, column) for record in records]
    shortest = min(map(len, curves))
    mean = [
        None if None in values else sum(values) / len(values)
        for values in zip(*(curve[:shortest] for curve in curves), strict=True)
    ]
    faint = curves if len(curves) > 1 else []
    lines = [Line(range(offset + 1, offset + 1 + len(curve)), curve, color, faint=True) for curve in faint]
    return [*lines, Line(range(offset + 1, offset + 1 + shortest), mean, color, label)]
