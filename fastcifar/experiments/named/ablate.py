"""Ablation: a recipe with all of its tricks against the same without one, for each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.result import Diverged, Failed, Outcome, Result, known, paired
from fastcifar.recipes import Recipe, change
from fastcifar.recipes.declare import setting
from fastcifar.recipes.tricks import TTA, choose_tricks, refuse_without_tricks
from fastcifar.report import Summary, Table, counted, percent, points, summarize

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.training import RunRecord

FULL = "full"
"""The arm with all tricks; that without one is called after it."""


@experiment("ablate")
@dataclass(frozen=True)
class Ablate(Experiment["Ablation"]):
    """Measure what each trick of a recipe is worth, switched off one at a time.

    The recipe and the same without each trick are trained in turn, with the same seeds. Says what is lost without each,
    in accuracy, log-loss and time, with 95% intervals. The rates are not tuned anew without a trick. An effect of 0.05
    points takes over a hundred runs of an arm to see. What test-time augmentation is worth is taken from the full
    recipe's runs.
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    runs: int = setting(3, at_least=1, at_most=100_000)
    """Runs of each arm."""
    only: tuple[str, ...] = ()
    """The tricks to switch off; none: all. An unknown one is answered with the recipe's."""

    holdout = 5000
    extending = ("runs", "only")
    needed_arms = (FULL,)

    def _check(self) -> None:
        super()._check()
        refuse_without_tricks(self.recipe, self.off)

    @cached_property
    def off(self) -> dict[str, dict[str, Any]]:
        """`off[trick]`: the fields that switch it off, and their values then."""
        return choose_tricks(self.recipe, self.only)

    def jobs(self, dataset: Dataset) -> list[Job]:
        arms = {FULL: self.recipe} | {name: change(self.recipe, off) for name, off in self.off.items() if name != TTA}
        return [Job(arm, seed, recipe) for seed in self.seeds for arm, recipe in arms.items()]

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Ablation:
        return Ablation(self, settings, outcomes)


@dataclass(frozen=True)
class TrickEffect:
    """A recipe without one trick less the recipe with all, seed by seed, and the 95% intervals of the means."""

    trick: str
    off: dict[str, Any]
    """The fields that switch it off, and their values then."""
    accuracy: Summary | None
    """A fraction, with test-time augmentation; None where every run without the trick failed."""
    loss: Summary | None
    """Log-loss in nats; None also for test-time augmentation itself, whose absence is not evaluated apart."""
    time_ratio: float | None
    """Training time without the trick over that with all."""
    diverged: int
    """Runs without the trick whose loss became NaN or infinite; they are in no other number."""
    failed: int = 0
    """Runs without the trick that failed, these among them."""

    @property
    def word(self) -> str:
        """What those runs did."""
        return Diverged.word if self.diverged == self.failed else Failed.word


@dataclass(frozen=True)
class Ablation(Result):
    """The result of `Ablate`."""

    experiment: Ablate

    @property
    def full(self) -> list[RunRecord]:
        """The runs of the full recipe."""
        return [outcome for outcome in self.outcomes[FULL] if not isinstance(outcome, Failed)]

    @property
    def n(self) -> int:
        """Runs of each arm."""
        return len(self.outcomes[FULL])

    def effect(self, trick: str) -> TrickEffect:
        """Return what changes without `trick`."""
        off = self.experiment.off[trick]
        if trick == TTA:
            accuracy = summarize([known(run.accuracy) - known(run.tta_accuracy) for run in self.full])
            return TrickEffect(trick, off, accuracy, None, None, 0)
        outcomes = zip(self.full, self.outcomes[trick], strict=True)
        pairs = [(full, without) for full, without in outcomes if not isinstance(without, Failed)]
        diverged = sum(isinstance(without, Diverged) for without in self.outcomes[trick])
        failures = diverged, self.n - len(pairs)
        if not pairs:
            return TrickEffect(trick, off, None, None, None, *failures)
        full, without = zip(*pairs, strict=True)
        accuracy = paired(*([known(run.tta_accuracy) for run in runs] for runs in (without, full)))
        loss = paired(*([known(run.tta_loss) for run in runs] for runs in (without, full)))
        time = sum(run.train_seconds for run in without) / sum(run.train_seconds for run in full)
        return TrickEffect(trick, off, accuracy, loss, time, *failures)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of data for the full recipe and for each trick, ready for JSON."""
        full = {
            "arm": FULL,
            "n": self.n,
            "accuracy": dataclasses.asdict(summarize([known(run.tta_accuracy) for run in self.full])),
            "loss": dataclasses.asdict(summarize([known(run.tta_loss) for run in self.full])),
            "train_seconds": dataclasses.asdict(summarize([run.train_seconds for run in self.full])),
        }
        effects = map(self.effect, self.experiment.off)
        return [full, *({"arm": f"no-{effect.trick}", **dataclasses.asdict(effect)} for effect in effects)]

    def to_dict(self) -> dict[str, Any]:
        return {**self.settings, "rows": self.rows()}

    def tables(self) -> list[Table]:
        """Return the tricks, that without which the most accuracy is lost first."""
        effects = [self.effect(trick) for trick in self.experiment.off]
        effects.sort(key=lambda effect: effect.accuracy.mean if effect.accuracy else float("-inf"))
        rows = [(FULL, percent(summarize([known(run.tta_accuracy) for run in self.full])), "", "1.000")]
        for effect in effects:
            accuracy = effect.word if effect.accuracy is None else points(effect.accuracy)
            if effect.accuracy and effect.failed:
                accuracy += f" (n={effect.accuracy.n}, {effect.failed} {effect.word})"
            loss = "-" if effect.loss is None else _loss(effect.loss)
            time = "-" if effect.time_ratio is None else f"{effect.time_ratio:.3f}"
            rows.append((f"no {effect.trick}", accuracy, loss, time))
        how = counted(self.n, "± 95% interval of each by itself")
        title = f"Without one trick, less the full recipe, seed by seed ({how})"
        return [Table(title, ("arm", "accuracy, points", "log-loss", "time ratio"), tuple(rows))]

    def remarks(self) -> list[str]:
        return []


def _loss(summary: Summary) -> str:
    half = "" if summary.interval is None else f" ± {summary.interval[1] - summary.mean:.4f}"
    return f"{summary.mean:+.4f}{half}"
