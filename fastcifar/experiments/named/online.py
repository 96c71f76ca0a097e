"""Images come in rounds: train anew each time, or go on from the last round? (Ash and Adams 2020, figure 2)"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Job, experiment
from fastcifar.experiments.result import Outcome, Result, known, paired, summary
from fastcifar.experiments.warm_starts import COLD, SHRINK, WARM, WarmStarts, doubts, train_accuracies
from fastcifar.recipes import Recipe, change, get_recipe
from fastcifar.recipes.declare import setting
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, seconds, summarize

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.training import RunRecord

ARMS = (COLD, WARM, SHRINK)


def _with_adam() -> Recipe:
    return change(get_recipe("warmstart-resnet18"), {"optimizer": {"kind": "Adam", "lr": 0.001, "weight_decay": 0.0}})


@experiment("online", group="warm-start")
@dataclass(frozen=True)
class Online(WarmStarts["OnlineResult"]):
    """Add images round by round, and train on all from warm, fresh and mixed weights.

    A round ends at --until-train-accuracy, or after the recipe's epochs. The first round, which has none before, is the
    cold start in all three arms; images that do not fill a last round are left out. Without a recipe Adam trains.
    """

    recipe: Recipe = dataclasses.field(default_factory=_with_adam)
    round_size: int = setting(1000, at_least=1, unit="images")
    """Images that each round adds."""
    until_train_accuracy: float = setting(0.99, above=0, at_most=1)
    """End a round after the first epoch with this running training accuracy, a fraction."""

    quick: ClassVar[Mapping[str, Any]] = {"train_size": 2000}

    def _check(self) -> None:
        super()._check()
        batch_size = self.recipe.batch_size
        self._require("round_size", self.round_size >= batch_size, f"batch_size, {batch_size}, or more images")

    def jobs(self, dataset: Dataset) -> list[Job]:
        images, batch_size = len(dataset.train), self.recipe.batch_size
        if self.round_size > images:
            allowed = f"batch_size, {batch_size}, to the {images} training images"
            raise UserError(f"round_size is {self.round_size}; allowed: {allowed}")
        jobs: dict[tuple[int, str, int], Job] = {}
        sizes = self.sizes(images)
        for number, size in enumerate(sizes):
            for arm in ARMS if number else (COLD,):
                for seed in self.seeds:
                    before = jobs[number - 1, arm if number > 1 else COLD, seed].key if number else None
                    fields = {"train_size": size, "round": number, "keep_weights": size == sizes[-1]}
                    jobs[number, arm, seed] = self.job(_arm(size, arm), seed, **fields, **self.start(arm, before))
        return list(jobs.values())

    def sizes(self, images: int) -> range:
        """Return the training images in each round, of `images` in all."""
        return range(self.round_size, images + 1, self.round_size)

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> OnlineResult:
        return OnlineResult(self, settings, outcomes)


def _arm(size: int, arm: str) -> str:
    return f"{size}/{arm}"


@dataclass(frozen=True)
class OnlineResult(Result):
    """The result of `Online`."""

    experiment: Online

    @property
    def sizes(self) -> range:
        """Training images in each round."""
        return self.experiment.sizes(self.settings["train_size"])

    @property
    def rounds(self) -> dict[str, list[list[RunRecord]]]:
        """`rounds[arm][round]`: the records in the order of `seeds`; the arms have one first round."""
        first, records = self.sizes[0], self.records
        return {arm: [records[_arm(size, arm if size > first else COLD)] for size in self.sizes] for arm in ARMS}

    def test_accuracies(self, arm: str, number: int = -1) -> list[float]:
        """Return the accuracies at the end of round `number` (from 0), by seed."""
        return [known(record.accuracy) for record in self.rounds[arm][number]]

    def train_seconds(self, arm: str) -> list[float]:
        """Return the training time of all rounds together, by seed."""
        rounds = self.rounds[arm]
        return [sum(found[place].train_seconds for found in rounds) for place in range(self.n)]

    def test_difference(self, arm: str, other: str) -> Summary:
        """Return test accuracy of `arm` less that of `other` after the last round: mean and interval by seed."""
        return paired(self.test_accuracies(arm), self.test_accuracies(other))

    def unfinished(self, arm: str) -> int:
        """Return the number of runs that took the most epochs allowed without reaching the training accuracy."""
        goal = self.settings["until_train_accuracy"]
        return sum(known(record.history[-1].train_accuracy) < goal for found in self.rounds[arm] for record in found)

    def to_dict(self) -> dict[str, Any]:
        arms: dict[str, Any] = {}
        for arm, rounds in self.rounds.items():
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
        return {**self.settings, "seeds": self.seeds, "arms": arms, **self.counts}

    def notebook(self) -> dict[str, Any]:
        """Return the first seed in the form of the results of the notebook's experiment 3, which begin with a round of
        no images."""
        return {
            name: {
                "test_accuracies_online": [0, *(100 * known(found[0].accuracy) for found in self.rounds[arm])],
                "training_times_online": [0, *(found[0].train_seconds for found in self.rounds[arm])],
                "n_samples_online": [0, *self.sizes],
            }
            for arm, name in ((COLD, "random"), (WARM, "warm"), (SHRINK, "shrink_perturb"))
        }

    def tables(self) -> list[Table]:
        n = counted(self.n)
        rows = [
            (
                f"{size:,}",
                *(percent(summarize(self.test_accuracies(arm, number))) for arm in ARMS),
                *(seconds(summarize([record.train_seconds for record in self.rounds[arm][number]])) for arm in ARMS),
            )
            for number, size in enumerate(self.sizes)
        ]
        columns = ("images", *(f"{arm}: {self.tested}" for arm in ARMS), *(f"{arm}: training" for arm in ARMS))
        totals = [
            (
                arm,
                seconds(summarize(self.train_seconds(arm))),
                percent(summarize(self.test_accuracies(arm))),
                str(self.unfinished(arm)),
            )
            for arm in ARMS
        ]
        heads = ("start", "training, all rounds", f"{self.tested} accuracy, last round", "runs that missed the goal")
        return [Table(f"By round ({n})", columns, tuple(rows)), Table(f"Altogether ({n})", heads, tuple(totals))]

    def remarks(self) -> list[str]:
        gap = self.test_difference(COLD, WARM)
        return [
            f"cold - warm: {points(gap)} points of {self.tested} accuracy in the last round, n={gap.n}",
            *doubts({"": gap}),
            f"a round ends at {self.settings['until_train_accuracy']:.0%} running training accuracy, "
            f"or after {self.settings['recipe']['epochs']:g} epochs",
            *super().remarks(),
        ]

    def files(self) -> dict[str, str]:
        return {**super().files(), "runs.json": json.dumps(self.notebook()) + "\n"}

    def figures(self) -> dict[str, Figure]:
        """Return test accuracy and training time by the number of images."""
        accuracy, time = [], []
        for arm, color in ((COLD, 1), (WARM, 0), (SHRINK, 2)):
            rounds = self.rounds[arm]
            reached = [[100 * known(record.accuracy) for record in records] for records in rounds]
            took = [[record.train_seconds for record in records] for records in rounds]
            for values, lines in ((reached, accuracy), (took, time)):
                found = list(map(summarize, values))
                y = [summary.mean for summary in found]
                ends = [summary.interval for summary in found]
                lines.append(Line(self.sizes, y, color, arm, intervals=ends))
        return {
            "accuracy": Figure("training images", f"{self.tested} accuracy (%)", tuple(accuracy)),
            "time": Figure("training images", "training time of the round (s)", tuple(time)),
        }
