"""Images come in rounds: train anew each time, or go on from the last round? (Ash and Adams 2020, figure 2)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastcifar.data import Dataset
from fastcifar.errors import UserError
from fastcifar.experiments.half import COLD, SHRINK, WARM, train_accuracies
from fastcifar.experiments.outcome import known
from fastcifar.experiments.runs import OnProgress, Runs, phase_seed
from fastcifar.experiments.settings import check_seeds, describe, kept_in, paired, summary
from fastcifar.experiments.store import Store
from fastcifar.recipes import Recipe
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, seconds, summarize
from fastcifar.start import ColdStart, ShrinkPerturb, Start, WarmStart
from fastcifar.training import RunRecord, Trainer

ARMS = (COLD, WARM, SHRINK)


@dataclass(frozen=True)
class OnlineResult:
    """What `online` found."""

    settings: dict[str, Any]
    seeds: tuple[int, ...]
    sizes: tuple[int, ...]
    """Training images in each round."""
    records: dict[str, list[list[RunRecord]]]
    """Of each of `ARMS` for every round a record for every seed."""

    def test_accuracies(self, arm: str, number: int = -1) -> list[float]:
        """At the end of round `number` (from 0), by seed."""
        return [known(record.accuracy) for record in self.records[arm][number]]

    def train_seconds(self, arm: str) -> list[float]:
        """Of all rounds together, by seed."""
        rounds = self.records[arm]
        return [sum(found[place].train_seconds for found in rounds) for place in range(len(self.seeds))]

    def test_difference(self, arm: str, other: str) -> Summary:
        """Test accuracy of `arm` less that of `other` after the last round: mean and interval, seed by seed."""
        return paired(self.test_accuracies(arm), self.test_accuracies(other))

    def unfinished(self, arm: str) -> int:
        """Runs that took the most epochs allowed without reaching the training accuracy."""
        goal = self.settings["until_train_accuracy"]
        return sum(known(record.history[-1].train_accuracy) < goal for found in self.records[arm] for record in found)

    def to_dict(self) -> dict[str, Any]:
        """All of it as data, ready for JSON."""
        arms: dict[str, Any] = {}
        for arm, rounds in self.records.items():
            arms[arm] = {
                "rounds": [
                    {
                        "images": size,
                        "test_accuracy": summary([known(record.accuracy) for record in found]),
                        "train_accuracy": summary(train_accuracies(found)),
                        "train_seconds": summary([record.train_seconds for record in found]),
                        "epochs": [record.epochs for record in found],
                    }
                    for size, found in zip(self.sizes, rounds, strict=True)
                ],
                "train_seconds": summary(self.train_seconds(arm)),
                "unfinished": self.unfinished(arm),
            }
        return {**self.settings, "seeds": list(self.seeds), "arms": arms}

    def notebook(self) -> dict[str, Any]:
        """The first seed in the form of the results of the notebook's experiment 3, which begin with a round of no
        images."""
        return {
            name: {
                "test_accuracies_online": [0, *(100 * known(found[0].accuracy) for found in self.records[arm])],
                "training_times_online": [0, *(found[0].train_seconds for found in self.records[arm])],
                "n_samples_online": [0, *self.sizes],
            }
            for arm, name in ((COLD, "random"), (WARM, "warm"), (SHRINK, "shrink_perturb"))
        }

    def tables(self) -> list[Table]:
        """All rounds, and what they came to."""
        n = counted(len(self.seeds))
        rows = [
            (
                f"{size:,}",
                *(percent(summarize(self.test_accuracies(arm, number))) for arm in ARMS),
                *(seconds(summarize([record.train_seconds for record in self.records[arm][number]])) for arm in ARMS),
            )
            for number, size in enumerate(self.sizes)
        ]
        columns = ("images", *(f"{arm}: test" for arm in ARMS), *(f"{arm}: training" for arm in ARMS))
        totals = [
            (
                arm,
                seconds(summarize(self.train_seconds(arm))),
                percent(summarize(self.test_accuracies(arm))),
                str(self.unfinished(arm)),
            )
            for arm in ARMS
        ]
        heads = ("start", "training, all rounds", "test accuracy, last round", "runs that missed the goal")
        return [Table(f"By round ({n})", columns, tuple(rows)), Table(f"Altogether ({n})", heads, tuple(totals))]

    def remarks(self) -> list[str]:
        """The answer in a line or two."""
        gap = self.test_difference(COLD, WARM)
        return [
            f"cold - warm: {points(gap)} points of test accuracy in the last round, n={gap.n}",
            f"a round ends at {self.settings['until_train_accuracy']:.0%} running training accuracy, "
            f"or after {self.settings['recipe']['epochs']:g} epochs",
        ]

    def figures(self) -> dict[str, Figure]:
        """Test accuracy and training time by the number of images."""
        accuracy, time = [], []
        for arm, color in ((COLD, 1), (WARM, 0), (SHRINK, 2)):
            rounds = self.records[arm]
            reached = [[100 * known(record.accuracy) for record in records] for records in rounds]
            took = [[record.train_seconds for record in records] for records in rounds]
            for values, lines in ((reached, accuracy), (took, time)):
                found = list(map(summarize, values))
                y = [summary.mean for summary in found]
                ends = [summary.interval for summary in found]
                lines.append(Line(self.sizes, y, color, arm, intervals=ends))
        return {
            "accuracy": Figure("training images", "test accuracy (%)", tuple(accuracy)),
            "time": Figure("training images", "training time of the round (s)", tuple(time)),
        }


def online(
    recipe: Recipe,
    dataset: Dataset,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    *,
    round_size: int = 1000,
    subset_seed: int = 0,
    shrink: float = 0.4,
    perturb: float = 0.1,
    until_train_accuracy: float = 0.99,
    device: str | torch.device = "auto",
    on_progress: OnProgress | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> OnlineResult:
    """Train on `round_size` images, on twice as many, and so on up to all, in each round until `until_train_accuracy`
    or for the recipe's epochs: from fresh weights every time, from those of the round before, and from shrink-perturb's
    mixture of those and fresh ones. The first round, which has no round before, is the cold start in all three; images
    that do not fill a last round are left out.

    The other arguments, and what is raised, are those of `half`. Of a round's weights only the last are kept.
    """
    check_seeds(seeds)
    if not recipe.batch_size <= round_size <= len(dataset.train):
        allowed = f"batch_size, {recipe.batch_size}, to the {len(dataset.train)} training images"
        raise UserError(f"round_size is {round_size}; allowed: {allowed}")
    settings = {
        **describe("online", recipe, dataset, subset_seed, shrink, perturb, until_train_accuracy, device, 0),
        "round_size": round_size,
    }
    sizes = tuple(range(round_size, len(dataset.train) + 1, round_size))
    keys = {
        (number, arm, seed): f"{size}/{arm if number else COLD}/seed-{seed}"  # in the first round the arms are one
        for number, size in enumerate(sizes)
        for arm in ARMS
        for seed in seeds
    }
    images = {key: recipe.epochs * sizes[number] for (number, _, _), key in keys.items()}
    records: dict[str, list[list[RunRecord]]] = {arm: [] for arm in ARMS}
    with kept_in(folder) as place:
        runs = Runs(Store(place, settings), images, on_progress, on_step, eval_every=0)
        for number, size in enumerate(sizes):
            part = dataset.take(size, seed=subset_seed)
            trainer = cache(lambda part=part: Trainer(recipe, part, device))
            found: dict[str, RunRecord] = {}
            for arm in ARMS:
                for seed in seeds:
                    key = keys[number, arm, seed]
                    if key not in found:  # the first round's is there from the arm before
                        source = runs.weights(keys[number - 1, arm, seed]) if number else None
                        start = _start(arm, source, shrink, perturb)
                        found[key] = runs.train(key, trainer, phase_seed(seed, number), start, until_train_accuracy)
                records[arm].append([found[keys[number, arm, seed]] for seed in seeds])
            for (later, arm, seed), key in keys.items():
                if later > number:
                    runs.expect(key, found[keys[number, arm, seed]].epochs * sizes[later])
                elif later == number - 1:
                    runs.weights(key).unlink(missing_ok=True)
    return OnlineResult(settings, tuple(seeds), sizes, records)


def _start(arm: str, source: Path | None, shrink: float, perturb: float) -> Callable[[], Start]:
    """What a round begins with; there is no source in the first."""
    if not source or arm == COLD:
        return ColdStart
    return (lambda: WarmStart(source)) if arm == WARM else (lambda: ShrinkPerturb(source, shrink, perturb))
