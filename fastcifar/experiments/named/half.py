"""Half of the images first, then all of them: is the head start worth it? (Ash and Adams 2020, figure 1 and table 1)"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Job, experiment
from fastcifar.experiments.result import Outcome, Result, known, paired, summary
from fastcifar.experiments.warm_starts import COLD, SHRINK, WARM, WarmStarts, doubts, train_accuracies
from fastcifar.output import user_path, write_all
from fastcifar.recipes.declare import setting
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, seconds, summarize
from fastcifar.report.figures import refuse_without_matplotlib

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.experiments.store import Store
    from fastcifar.training import EpochRow, RunRecord

FIRST = "half"
"""The training on a part of the images, which the arms `WARM` and `SHRINK` begin with."""
NOTEBOOK = {FIRST: "half_cifar", WARM: "warm_start", COLD: "random_init", SHRINK: "shrink_perturb"}
"""Their names in the notebook teaching-on-testbeds/re_warm_start_nn, in the file of its experiment 1."""
LESSON = {
    FIRST: ("half_cifar", "half_cifar"),
    WARM: ("warm_start", "warm_start_full"),
    COLD: ("full_cifar", "random_full"),
}
"""What that notebook's text calls the runs of its experiment 1, and the files of their weights."""
PAIRS = ((COLD, WARM), (SHRINK, WARM), (COLD, SHRINK))
"""The differences that are the experiment's answer."""
SCORES = ("precision", "recall")
CLASS_COLUMNS = ("start", *SCORES, *(f"{score} less cold's" for score in SCORES))


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
    notebook_names: bool = False
    """Write the first seed as the paper's notebook does: weights as half_cifar.pt, warm_start_full.pt, random_full.pt,
    curves as its runs.json (null: an epoch without evaluation) and as fig1_train.pdf and fig1_test.pdf."""

    extending = (*WarmStarts.extending, "notebook_names")
    quick: ClassVar[Mapping[str, Any]] = {"train_size": 1500, "eval_every": 3}

    def run(self, dataset: Dataset, folder: str | Path | None = None, **how: Any) -> HalfResult:
        if self.notebook_names:
            if folder is None:
                raise UserError("notebook_names writes files, and nothing is kept; allowed: with a folder")
            refuse_without_matplotlib()
        return super().run(dataset, folder, **how)

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

    experiment: Half
    weights: dict[tuple[str, int], Path] = dataclasses.field(default_factory=dict)
    """The files of the runs' weights, by arm and seed."""

    def add(self, job: Job, outcome: Outcome, store: Store) -> None:
        super().add(job, outcome, store)
        self.weights[job.arm, job.seed] = store.weights(job.key)

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

    def by_class(self, score: str, arm: str, other: str = "") -> Summary | None:
        """Return mean and interval of a macro mean over the classes on the test split, the "precision" or the "recall",
        less that of `other` seed by seed where one is named; None where an older run has none by class."""
        values, others = ([getattr(record, score) for record in self.records[name]] for name in (arm, other or arm))
        if None in values or None in others:
            return None
        return paired(values, others if other else [0.0] * len(values))

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
                **self._by_class(arm),
            }
            for arm in NOTEBOOK
        }
        differences = {
            f"{arm} - {other}": {
                "test_accuracy": dataclasses.asdict(self.test_difference(arm, other)),
                "train_accuracy": dataclasses.asdict(self.train_difference(arm, other)),
                **self._by_class(arm, other),
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

    def _by_class(self, arm: str, other: str = "") -> dict[str, Any]:
        found = {score: self.by_class(score, arm, other) for score in SCORES}
        return {score: each and dataclasses.asdict(each) for score, each in found.items()}

    def lesson(self) -> dict[str, list[Any]]:
        """Return the curves of the first seed as the notebook's text has them: training and test accuracy in percent,
        from a 0 before the first epoch on, and how many trainings went before."""
        records = {arm: self.records[arm][0] for arm in LESSON}
        return {
            name: [[0, *_percents(records[arm], _train)], [0, *_percents(records[arm], _test)], int(arm != FIRST)]
            for arm, (name, _) in LESSON.items()
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
            Table(f"Macro means over the classes, {self.tested} images ({n})", CLASS_COLUMNS, self.class_rows()),
        ]

    def class_rows(self, of: str = "") -> tuple[tuple[str, ...], ...]:
        """Return rows of the arms' precision and recall, and of what they are less those of the cold start; their names
        begin with `of`."""
        rows = []
        for arm in NOTEBOOK:
            found = [self.by_class(score, arm) for score in SCORES]
            less = [None if arm == COLD else self.by_class(score, arm, COLD) for score in SCORES]
            cells = *(each and percent(each) for each in found), *(each and points(each) for each in less)
            rows.append((of + arm, *(cell or "-" for cell in cells)))
        return tuple(rows)

    def remarks(self) -> list[str]:
        gap = self.test_difference(COLD, WARM)
        lines = [f"cold - warm: {points(gap)} points of {self.tested} accuracy, n={gap.n}", *doubts({"": gap})]
        if self.recovered is not None:
            lines.append(f"shrink-perturb closes {self.recovered:.0%} of the gap from warm to cold")
        lines += super().remarks()
        if self.experiment.notebook_names:
            weights = ", ".join(f"{name}.pt" for _, name in LESSON.values())
            lines.append(f"{weights}, runs.json and fig1_*.pdf are of seed {self.seeds[0]}")
        return lines

    def files(self) -> dict[str, str]:
        curves = self.lesson() if self.experiment.notebook_names else self.notebook()
        return {**super().files(), "runs.json": json.dumps(curves) + "\n"}

    def write(self, folder: str | Path) -> list[Path]:
        files = super().write(folder)
        if not self.experiment.notebook_names:
            return files
        from fastcifar.training.state_file import torch_writer
        from fastcifar.training.weights import read_weights

        def writer(arm: str) -> Callable[[Path], object]:
            tensors, _ = read_weights(self.weights[arm, self.seeds[0]])
            return torch_writer({"model": tensors})

        folder = user_path(folder, "the folder of the result")
        named = {f"{name}.pt": writer(arm) for arm, (_, name) in LESSON.items()}
        write_all(folder, named)
        return [*files, *(folder / name for name in named)]

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
        return figures | (self._notebook_figures() if self.experiment.notebook_names else {})

    def _notebook_figures(self) -> dict[str, Figure]:
        epochs, curves = len(self.records[FIRST][0].history), self.lesson()
        figures = {}
        for place, split in enumerate(("train", "test")):
            lines = [
                Line(range(epochs * rounds, epochs * rounds + len(found[place])), found[place], color, name)
                for color, (name, (*found, rounds)) in enumerate(curves.items())
            ]
            what = f"{split.capitalize()} accuracy (%)"
            figures[f"fig1_{split}"] = Figure("Epoch", what, tuple(lines), dashed_at=epochs, y_range=(0, 100))
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
