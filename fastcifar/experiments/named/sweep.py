"""Sweep: a recipe with several values of its fields, and the curves of all of them in one figure."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastcifar.errors import UserError, brief
from fastcifar.escape import in_file_name
from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.result import Outcome, SeparateArms, failure_word, known, summary
from fastcifar.recipes import Recipe, change, label
from fastcifar.recipes.factors import read_values
from fastcifar.recipes.text import Written, leaves, to_text, with_all_transforms
from fastcifar.report import Figure, Line, Table, counted, percent, summarize
from fastcifar.report.tables import nats, seconds_and_spread

if TYPE_CHECKING:
    from fastcifar.data import Dataset

ITSELF = "recipe"
"""The arm of the recipe's own values."""
_MOST = 1000
_MOST_CURVES = 40
"""Arms whose curves differ in color or dashes: matplotlib has ten colors, and `Line` four dashes."""


@experiment("sweep")
@dataclass(frozen=True)
class Sweep(Experiment["Sweeping"]):
    """Train a recipe with several values of its fields, one field at a time or all combinations.

    Ends with a table of the best and the last accuracy, the loss and the time of each, and with figures: the losses and
    accuracies of all of them by epoch, and their times. A training that diverges is a result, and said.

    What looks best of many is a little worse than it looks: confirm it (`compare`).
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    vary: tuple[str, ...] = ()
    """A field and its values, a word each: FIELD=VALUE,VALUE, as in optimizer.lr=1e-4,3e-4,1e-3 or
    network.activation=relu,gelu. A list is a value in brackets, or of numbers one with spaces: "network.widths=8 16,16
    32", 'schedule.options=["patience=1", "factor=0.3"],["patience=2"]'. May be given several times."""
    grid: bool = False
    """Train all combinations of the values; false: each value of a field with the others as the recipe has them."""

    holdout = 5000
    extending = ("runs", "vary", "grid")
    repeatable = ("vary",)

    def _check(self) -> None:
        super()._check()
        if self.vary:
            _ = self.arms  # refused now

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """The recipes to train, by names that files can have. Raises UserError for one that cannot be, and where there
        are none."""
        if not self.vary:
            raise UserError("vary names no field; allowed: FIELD=VALUE,VALUE, as in optimizer.lr=1e-4,3e-4,1e-3")
        fields: dict[str, list[Written]] = {}
        for word in self.vary:
            name, values = read_values(word)
            if name in fields:
                raise UserError(f"vary has {name} twice; allowed: each field once, with all its values")
            fields[name] = values
        singles = [{name: value} for name, values in fields.items() for value in values]
        count = math.prod(map(len, fields.values())) if self.grid else len(singles)
        if count > _MOST:
            raise UserError(f"vary asks for {count:,} recipes; allowed: up to {_MOST:,}")
        combinations = (dict(zip(fields, each, strict=True)) for each in itertools.product(*fields.values()))
        found: dict[Recipe, list[str]] = {}
        names: dict[str, Recipe] = {}
        told: set[str] = set()
        for changes in combinations if self.grid else singles:
            recipe = _changed(self.recipe, tuple(changes.items()))
            text = ", ".join(f"{name}={_shown(recipe, name)}" for name in changes)
            if text in told:
                raise UserError(f"vary has {brief(text)} twice; allowed: each value once")
            told.add(text)
            if recipe not in found:
                name = self._name(changes, recipe)
                if name.casefold() in {other.casefold() for other in names}:  # names have no brackets
                    every = repr(sorted(leaves(dataclasses.asdict(recipe))))
                    name += f"-{hashlib.sha256(every.encode()).hexdigest()[:8]}"
                names[name] = recipe
            found.setdefault(recipe, []).append(text)
        return {name: Arm(", ".join(found[recipe]), recipe) for name, recipe in names.items()}

    def _name(self, changes: Mapping[str, Written], recipe: Recipe) -> str:
        """Return the name of the arm of `recipe`: those of `changes` that make it, the same in every sweep of its
        fields, whichever others it varies and in whatever order."""
        if recipe == _changed(self.recipe, ()):
            return ITSELF
        own = tuple(sorted(changes.items()))
        for each in own:
            fewer = tuple(other for other in own if other != each)
            with contextlib.suppress(UserError):  # of values that need this one
                own = fewer if _changed(self.recipe, fewer) == recipe else own
        return in_file_name(",".join(f"{name.removesuffix('.kind')}={_shown(recipe, name)}" for name, _ in own))

    def trained_recipes(self) -> dict[str, Recipe]:
        return {name: arm.recipe for name, arm in self.arms.items()}

    @property
    def subject(self) -> str:
        return f"{label(self.recipe)} with {len(self.arms)} choices of values"

    def jobs(self, dataset: Dataset) -> list[Job]:
        from fastcifar.training.refusals import refuse_untrainable

        networks: dict[Any, Any] = {}
        for arm in sorted(self.arms.values(), key=lambda arm: repr(arm.recipe.network)):
            try:
                refuse_untrainable(arm.recipe, dataset, networks)
            except UserError as error:
                raise UserError(f"vary {arm.text}: {error}") from None
            for key in list(networks)[:-1]:  # one at a time is kept: together they may fill the memory
                del networks[key]
        return [Job(name, seed, arm.recipe, eval_every=1) for seed in self.seeds for name, arm in self.arms.items()]

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Sweeping:
        return Sweeping(self, settings, outcomes)


@dataclass(frozen=True)
class Arm:
    """A recipe of a sweep."""

    text: str
    """Its values, as in `optimizer.lr=0.001`; of the recipe itself those values of the sweep that are its own."""
    recipe: Recipe


@dataclass(frozen=True)
class Scores:
    """What the runs of an arm that ended well reached, a value for each; without test-time augmentation."""

    best: list[float]
    """The highest accuracy after an epoch, a fraction."""
    last: list[float]
    """The accuracy at the end."""
    loss: list[float]
    """The log-loss at the end, in nats."""
    seconds: list[float]
    """Training, evaluations left out."""


@dataclass(frozen=True)
class Sweeping(SeparateArms):
    """The result of `Sweep`."""

    experiment: Sweep

    def scores(self, arm: str) -> Scores:
        """Return what the runs of an arm reached."""
        runs = self.ended(arm)
        return Scores(
            [max(run.accuracies["test"].values()) for run in runs],
            [known(run.accuracy) for run in runs],
            [known(run.loss) for run in runs],
            [run.train_seconds for run in runs],
        )

    def curve(self, arm: str, kind: str, split: str) -> tuple[list[int], list[float]]:
        """Return the epochs, and the mean over the runs of their "losses" or "accuracies" on "train" or "test"."""
        runs = [getattr(run, kind)[split] for run in self.ended(arm)]
        epochs = list(runs[0]) if runs else []
        return epochs, [statistics.fmean(run[epoch] for run in runs) for epoch in epochs]

    def to_dict(self) -> dict[str, Any]:
        arms = {}
        for name, arm in self.experiment.arms.items():
            scores = dataclasses.asdict(self.scores(name)).items() if self.ended(name) else ()
            failed = [each.word for each in self.failed_of(name)]
            arms[name] = {"values": arm.text, "failed": failed, **{score: summary(each) for score, each in scores}}
        return {**self.settings, "seeds": self.seeds, "arms": arms, **self.counts}

    def tables(self) -> list[Table]:
        rows = []
        for name, arm in self.experiment.arms.items():
            scores, failed = self.scores(name), self.failed_of(name)
            said = [f"{len(failed)} {failure_word(failed)}"] * bool(failed)
            cells = ["-"] * 4
            if scores.last:
                accuracies = (percent(summarize(each)) for each in (scores.best, scores.last))
                cells = [
                    *accuracies,
                    nats(summarize(scores.loss)),
                    seconds_and_spread(scores.seconds, statistics.fmean),
                ]
            own = " (the recipe's)" if name == ITSELF else ""
            rows.append((arm.text + own, ", ".join([str(len(scores.last)), *said]), *cells))
        heads = ("values", "n", f"best {self.tested} accuracy", "at the end", "log-loss", f"training{self._at_once}")
        return [Table(f"Without test-time augmentation ({counted(self.n)})", heads, tuple(rows))]

    def remarks(self) -> list[str]:
        arms, remarks = self.experiment.arms, []
        losses = {name: statistics.fmean(self.scores(name).loss) for name in arms if self.ended(name)}
        if losses:
            best = min(losses, key=lambda name: losses[name])
            said = f"the lowest log-loss at the end, {losses[best]:.4f}, is with {arms[best].text}"
            remarks.append(f"{said}; the best of {len(arms)} looks a little better than it is")
        failed = {name: self.failed_of(name) for name in arms}
        if len(arms) > _MOST_CURVES:
            said = f"{len(arms)} choices of values, and {_MOST_CURVES} can be told apart"
            remarks.append(f"no figures of the curves: {said}")
        return remarks + [
            f"{arms[name].text}: {len(each)} of {self.n} {failure_word(each)}, in no other number ({each[0].reason})"
            for name, each in failed.items()
            if each
        ]

    def figures(self) -> dict[str, Figure]:
        if not any(map(self.ended, self.experiment.arms)):
            return {}
        kinds = {"losses": "log-loss (nats)", "accuracies": "accuracy (%)"}
        can_be_told = len(self.experiment.arms) <= _MOST_CURVES
        found = {kind: self._curves(kind, what) for kind, what in kinds.items() if can_be_told}
        return {**found, "seconds": self._seconds()}

    def _curves(self, kind: str, what: str) -> Figure:
        factor, lines = 100 if kind == "accuracies" else 1, []
        for color, (name, arm) in enumerate(self.experiment.arms.items()):
            for split in ("train", "test") if self.ended(name) else ():
                epochs, means = self.curve(name, kind, split)
                named = arm.text if split == "test" else ""
                lines.append(Line(epochs, [factor * mean for mean in means], color, named, faint=split == "train"))
        return Figure("epoch", f"{self.tested} {what}; pale: training", tuple(lines), log_y=kind == "losses")

    def _seconds(self) -> Figure:
        names = [name for name in self.experiment.arms if self.ended(name)]
        times = [self.scores(name).seconds for name in names]
        spread = [(min(each), max(each)) if len(each) > 1 else None for each in times]
        places = list(range(len(names)))
        means = [statistics.fmean(each) for each in times]
        said = "mean" + ", least and most" * (self.n > 1)
        line = Line(means, places, 0, said, intervals=spread, bars=True)
        texts = tuple(self.experiment.arms[name].text for name in names)
        return Figure(f"training (s), evaluations left out{self._at_once}", "", (line,), rows=texts)

    @property
    def _at_once(self) -> str:
        """How many runs were trained at once, where that was more than one, for the times say little else."""
        together = self.settings.get("parallel", 1)
        return f", {together} at once" if together > 1 else ""


@functools.lru_cache(maxsize=4 * _MOST)
def _changed(recipe: Recipe, changes: tuple[tuple[str, Written], ...]) -> Recipe:
    """Return `change` of the recipe."""
    return change(recipe, dict(changes), f"vary {' and '.join(f'{name}={value}' for name, value in changes)}")


@functools.lru_cache(maxsize=4 * _MOST)
def _values(recipe: Recipe) -> dict[str, object]:
    """Return the value of every field, those of transforms that are off too, by dotted name."""
    return dict(leaves(dataclasses.asdict(with_all_transforms(recipe))))


def _shown(recipe: Recipe, name: str) -> str:
    """Return the value of a field as the recipe has it: 1e-3 and 0.001 are one. Of a section it is the kind."""
    values = _values(recipe)
    value = values[name] if name in values else values[f"{name}.kind"]
    return value if isinstance(value, str) else to_text(value)
