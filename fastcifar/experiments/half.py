"""Half of the images first, then all of them: is the head start worth it? (Ash and Adams 2020, figure 1 and table 1)"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from fastcifar.data import Dataset
from fastcifar.experiments.outcome import known
from fastcifar.experiments.runs import OnProgress, Runs, phase_seed
from fastcifar.experiments.settings import check_fraction, check_seeds, describe, first_size, kept_in, paired, summary
from fastcifar.experiments.store import Store
from fastcifar.recipes import Recipe
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, seconds, summarize
from fastcifar.start import ColdStart, ShrinkPerturb, WarmStart
from fastcifar.training import EpochRow, RunRecord, Trainer

FIRST, WARM, COLD, SHRINK = "half", "warm", "cold", "shrink-perturb"
ARMS = (FIRST, WARM, COLD, SHRINK)
"""The first phase, and the three ways into the second: its weights, fresh ones, and a mixture of both."""
NOTEBOOK = {FIRST: "half_cifar", WARM: "warm_start", COLD: "random_init", SHRINK: "shrink_perturb"}
"""What the notebook teaching-on-testbeds/re_warm_start_nn calls them in the file of its experiment 1."""
PAIRS = ((COLD, WARM), (SHRINK, WARM), (COLD, SHRINK))
"""The differences that are the experiment's answer."""


@dataclass(frozen=True)
class HalfResult:
    """What `half` found; accuracies are fractions, in the order of `seeds`."""

    settings: dict[str, Any]
    """What the runs were made with."""
    seeds: tuple[int, ...]
    records: dict[str, list[RunRecord]]
    """Of each of `ARMS` a record for every seed."""

    def test_accuracies(self, arm: str) -> list[float]:
        """On the test split, without test-time augmentation, at the end."""
        return [known(record.accuracy) for record in self.records[arm]]

    def train_accuracies(self, arm: str) -> list[float]:
        """On the run's own training images at the end, in evaluation mode and without augmentation."""
        return train_accuracies(self.records[arm])

    def test_difference(self, arm: str, other: str) -> Summary:
        """Test accuracy of `arm` less that of `other`: mean and interval of the differences seed by seed."""
        return paired(self.test_accuracies(arm), self.test_accuracies(other))

    def train_difference(self, arm: str, other: str) -> Summary:
        """The same of the training accuracies."""
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
        """All of it as data, ready for JSON."""
        arms = {
            arm: {
                "test_accuracy": summary(self.test_accuracies(arm)),
                "train_accuracy": summary(self.train_accuracies(arm)),
                "train_seconds": summary([record.train_seconds for record in self.records[arm]]),
                "epochs": [record.epochs for record in self.records[arm]],
            }
            for arm in ARMS
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
            "seeds": list(self.seeds),
            "arms": arms,
            "differences": differences,
            "recovered": self.recovered,
        }

    def notebook(self) -> dict[str, Any]:
        """The curves of the first seed in the form of the notebook's runs.json: percent, a 0 before the first epoch,
        and how many places the second phase is moved to the right. None stands for an epoch without an evaluation."""
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
        """What each way of starting reached, and what lies between them."""
        arms = [
            (
                arm,
                percent(summarize(self.test_accuracies(arm))),
                percent(summarize(self.train_accuracies(arm))),
                f"{summarize([record.epochs for record in self.records[arm]]).mean:.4g}",
                seconds(summarize([record.train_seconds for record in self.records[arm]])),
            )
            for arm in ARMS
        ]
        differences = [
            (
                f"{arm} - {other}",
                points(self.test_difference(arm, other)),
                points(self.train_difference(arm, other)),
            )
            for arm, other in PAIRS
        ]
        n = counted(len(self.seeds))
        return [
            Table(f"At the end ({n})", ("start", "test accuracy", "train accuracy", "epochs", "training"), tuple(arms)),
            Table(f"Differences in points, seed by seed ({n})", ("starts", "test", "train"), tuple(differences)),
        ]

    def remarks(self) -> list[str]:
        """The answer in a line or two."""
        gap = self.test_difference(COLD, WARM)
        lines = [f"cold - warm: {points(gap)} points of test accuracy, n={gap.n}"]
        if self.recovered is not None:
            lines.append(f"shrink-perturb closes {self.recovered:.0%} of the gap from warm to cold")
        return lines

    def figures(self) -> dict[str, Figure]:
        """Training and test accuracy over both phases: a faint line for each seed, and their mean."""
        longest = max(len(record.history) for record in self.records[FIRST])
        figures = {}
        for name, column, what in (
            ("train", _train, "training accuracy, running (%)"),
            ("test", _test, "test accuracy (%)"),
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


def half(
    recipe: Recipe,
    dataset: Dataset,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    *,
    fraction: float = 0.5,
    subset_seed: int = 0,
    shrink: float = 0.4,
    perturb: float = 0.1,
    until_train_accuracy: float | None = None,
    device: str | torch.device = "auto",
    eval_every: int = 1,
    on_progress: OnProgress | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> HalfResult:
    """For every seed train on `fraction` of the training images, always the same ones for a `subset_seed`; then on all
    of them, from those weights, from fresh ones, and from shrink-perturb's mixture of both.

    The runs of the second phase share a seed, and so the order of their images. Each run takes the recipe's epochs, or
    fewer with `until_train_accuracy` (see `Trainer.run`). Finished runs are kept in `folder`, and not trained again
    when the same experiment is called with it again; with None they are kept only as long as it takes.
    Raises UserError for bad input, and where `folder` is that of an experiment with other settings.
    """
    check_seeds(seeds)
    check_fraction(fraction, recipe, dataset)
    settings = {
        **describe("half", recipe, dataset, subset_seed, shrink, perturb, until_train_accuracy, device, eval_every),
        "fraction": fraction,
    }
    with kept_in(folder) as place:
        images = half_images("", recipe, dataset, seeds, fraction)
        runs = Runs(Store(place, settings), images, on_progress, on_step, eval_every)
        records = train_half(runs, "", recipe, dataset, seeds, settings, device)
    return HalfResult(settings, tuple(seeds), records)


def train_half(
    runs: Runs,
    prefix: str,
    recipe: Recipe,
    dataset: Dataset,
    seeds: Sequence[int],
    settings: dict[str, Any],
    device: str | torch.device,
) -> dict[str, list[RunRecord]]:
    """The records of `ARMS` for `seeds`, under keys that begin with `prefix`; `settings` are those of `half`."""
    until = settings["until_train_accuracy"]
    part = dataset.take(first_size(dataset, settings["fraction"]), seed=settings["subset_seed"])
    on_part = cache(lambda: Trainer(recipe, part, device))
    on_all = cache(lambda: Trainer(recipe, dataset, device))
    records: dict[str, list[RunRecord]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        first = half_key(prefix, FIRST, seed)
        records[FIRST].append(runs.train(first, on_part, phase_seed(seed, 0), until_train_accuracy=until))
        source = runs.weights(first)
        starts = {
            WARM: lambda source=source: WarmStart(source),
            COLD: ColdStart,
            SHRINK: lambda source=source: ShrinkPerturb(source, settings["shrink"], settings["perturb"]),
        }
        for arm, start in starts.items():
            key = half_key(prefix, arm, seed)
            records[arm].append(runs.train(key, on_all, phase_seed(seed, 1), start, until))
    return records


def half_key(prefix: str, arm: str, seed: int) -> str:
    """The key of a run in the store."""
    return f"{prefix}{arm}/seed-{seed}"


def half_images(
    prefix: str, recipe: Recipe, dataset: Dataset, seeds: Sequence[int], fraction: float
) -> dict[str, float]:
    """For every key the images that its run passes at most."""
    sizes = dict.fromkeys(ARMS, len(dataset.train)) | {FIRST: first_size(dataset, fraction)}
    return {half_key(prefix, arm, seed): recipe.epochs * size for seed in seeds for arm, size in sizes.items()}


def train_accuracies(records: Sequence[RunRecord]) -> list[float]:
    """Of runs on their own training images at the end."""
    return [known(record.train_split and record.train_split.accuracy) for record in records]


_Column = Callable[[EpochRow], float | None]
_train: _Column = attrgetter("train_accuracy")
_test: _Column = attrgetter("test_accuracy")


def _percents(record: RunRecord, column: _Column) -> list[float | None]:
    """One of the columns of a run's history in percent, None where an epoch has no value."""
    values = map(column, record.history)
    return [None if value is None else 100 * value for value in values]


def _lines(records: Sequence[RunRecord], column: _Column, offset: int, color: int, label: str) -> list[Line]:
    """A faint line for each of several runs, and their mean up to where the first of them ended."""
    curves = [_percents(record, column) for record in records]
    shortest = min(map(len, curves))
    mean = [
        None if None in values else sum(values) / len(values)
        for values in zip(*(curve[:shortest] for curve in curves), strict=True)
    ]
    faint = curves if len(curves) > 1 else []
    lines = [Line(range(offset + 1, offset + 1 + len(curve)), curve, color, faint=True) for curve in faint]
    return [*lines, Line(range(offset + 1, offset + 1 + shortest), mean, color, label)]
