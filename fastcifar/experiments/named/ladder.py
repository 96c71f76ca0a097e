"""The ladder: every step of "How to train your ResNet" trained in turn, beside the posts' own figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.result import Outcome, SeparateArms, known
from fastcifar.output import short_name
from fastcifar.recipes import Recipe, narrow
from fastcifar.recipes.declare import setting
from fastcifar.recipes.named.ladder import LADDER, WALK, Rung
from fastcifar.report import Figure, Line, Table, counted, percent, seconds, summarize

if TYPE_CHECKING:
    from fastcifar.data import Dataset

_NAMES = tuple(rung.name for rung in LADDER)
_STEPS = tuple(rung.name for rung in WALK)
_GROUPS = ("walk", "branches")


@experiment("ladder")
@dataclass(frozen=True)
class Ladder(Experiment["Climb"]):
    """Train every step of "How to train your ResNet", beside the posts' own figures.

    Each rung is a recipe, its difference from the one before; docs/ladder.md lists them. The walk leads from the
    18-layer entry to DAWNBench to DavidNet; branches are the posts' ways of loading data, the further networks of post
    4, LARS, no batch norm and Fenwicks' settings. Networks are evaluated on held-out training images: the test set, on
    which the posts' own accuracies are, only confirms (--holdout 0). With --quick, a small part of the images and
    epochs and a quarter of the width, two CPU cores walk it in under half an hour.
    """

    from_: str = _STEPS[0]
    """The first rung of the walk."""
    to: str = _STEPS[-1]
    """Its last rung."""
    rungs: tuple[str, ...] = ("walk",)
    """What is trained, in the ladder's order: walk, branches, or rungs by name."""
    scale: float = setting(1.0, above=0, at_most=1)
    """Train on this share of the images, and for this share of the epochs, at least one; the schedule and the moving
    average keep their shape over the training."""
    narrow: bool = False
    """Train networks of a quarter of the width."""

    holdout = 5000
    extending = ("runs", "from_", "to", "rungs")
    quick: ClassVar[Mapping[str, Any]] = {"scale": 0.2, "narrow": True, "train_size": None}

    def _check(self) -> None:
        super()._check()
        for name, end in (("from_", _STEPS[0]), ("to", _STEPS[-1])):
            rung = getattr(self, name)
            if rung in _NAMES and rung not in _STEPS:
                raise UserError(f"{name} is {rung}, a branch; allowed: a rung of the walk; --rungs {rung} trains it")
            self._require_rung(name, f"is {brief(rung)}", rung, _STEPS, "a rung of the walk")
            fits = "walk" in self.rungs or getattr(self, name) == end
            self._require(name, fits, f"{end}, or any with rungs walk, as this is an end of the walk")
        later = f"{self.from_}{' or a rung after it' * (self.from_ != _STEPS[-1])}, where the walk begins with that"
        self._require("to", _STEPS.index(self.to) >= _STEPS.index(self.from_), later)
        for word in self.rungs:
            self._require_rung("rungs", f"has {brief(word)}", word, (*_GROUPS, *_NAMES), "walk, branches or a rung")
        self._require("rungs", self.rungs, "walk, branches or names of rungs")

    @staticmethod
    def _require_rung(name: str, said: str, word: str, known: Sequence[str], allowed: str) -> None:
        if word not in known:
            raise UserError(f"{name} {said}{did_you_mean(word, known)}; allowed: {allowed}, as in docs/ladder.md")

    @cached_property
    def chosen(self) -> list[Rung]:
        """The rungs to train, in the ladder's order."""
        walk = _STEPS[_STEPS.index(self.from_) : _STEPS.index(self.to) + 1] if "walk" in self.rungs else ()
        names = {*walk, *self.rungs}
        every_branch = "branches" in self.rungs
        return [rung for rung in LADDER if rung.name in names or (every_branch and rung.is_branch)]

    def trained_recipes(self) -> dict[str, Recipe]:
        return {rung.name: self.at_scale(rung.recipe) for rung in self.chosen}

    def at_scale(self, recipe: Recipe) -> Recipe:
        """Return `recipe` shortened and narrowed as the options say."""
        network = narrow(recipe.network) if self.narrow else recipe.network
        if (
            self.scale < 1
        ):  # the average is over as large a part of the training, of which this share of the steps is left
            epochs = max(1.0, recipe.epochs * self.scale)
            steps = self.scale * epochs / recipe.epochs
            decay, every = recipe.ema.decay ** (1 / steps), max(1, round(recipe.ema.every * steps))
            recipe = dataclasses.replace(
                recipe, epochs=epochs, ema=dataclasses.replace(recipe.ema, decay=decay, every=every)
            )
        return dataclasses.replace(recipe, network=network)

    @property
    def subject(self) -> str:
        first, *rest = (rung.name for rung in self.chosen)
        what = f"{first} to {rest[-1]}, {len(rest) + 1} rungs" if rest else first
        return ", ".join([what, *self.made_small])

    @property
    def made_small(self) -> list[str]:
        """What is smaller than in the posts, in words."""
        scale = [f"at scale {self.scale:g} of images and epochs"] if self.scale < 1 else []
        return scale + ["at a quarter of the width"] * self.narrow

    def jobs(self, dataset: Dataset) -> list[Job]:
        images, recipes = round(len(dataset.train) * self.scale), self.trained_recipes()
        largest = max(recipes.values(), key=lambda recipe: recipe.batch_size)
        if images < largest.batch_size:
            said = f"scale is {self.scale:g} of {len(dataset.train):,} images, and {largest.name} has batches of"
            raise UserError(f"{said} {largest.batch_size}; allowed: enough for one, or more images")
        size = images if self.scale < 1 else None
        return [Job(name, seed, recipe, train_size=size) for seed in self.seeds for name, recipe in recipes.items()]

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Climb:
        return Climb(self, settings, outcomes)


@dataclass(frozen=True)
class Climb(SeparateArms):
    """The result of `Ladder`."""

    experiment: Ladder

    @property
    def title(self) -> str:
        return f"ladder: {self.experiment.subject}, {short_name(self.settings['dataset'])}"

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of data for each rung, ready for JSON: with the posts' own figures, and how many times as fast
        as the rung before it is; None where that was not trained."""
        rows = []
        for rung in self.experiment.chosen:
            runs, before = self.ended(rung.name), self.ended(rung.before)
            time = summarize([run.train_seconds for run in runs]) if runs else None
            faster = summarize([run.train_seconds for run in before]).mean / time.mean if before and time else None
            accuracy = summarize([known(run.tta_accuracy) for run in runs]) if runs else None
            rows.append(
                {
                    "rung": rung.name,
                    "before": rung.before,
                    "changed": rung.changed,
                    "post": rung.post,
                    "epochs": self.experiment.at_scale(rung.recipe).epochs,
                    "accuracy": accuracy and dataclasses.asdict(accuracy),
                    "train_seconds": time and dataclasses.asdict(time),
                    "speed_up": faster,
                    "post_epochs": rung.recipe.epochs,
                    "post_accuracy": rung.accuracy,
                    "post_seconds": rung.seconds,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        return {**self.settings, "n": self.n, "rungs": self.rows(), **self.counts}

    def tables(self) -> list[Table]:
        rows = []
        for rung, row in zip(self.experiment.chosen, self.rows(), strict=True):
            runs = self.ended(rung.name)
            accuracy = percent(summarize([known(run.tta_accuracy) for run in runs])) if runs else ""
            accuracy += self.failed_words(rung.name)
            time = seconds(summarize([run.train_seconds for run in runs])) if runs else "-"
            faster = "-" if row["speed_up"] is None else f"{row['speed_up']:.2f}"
            theirs = _or_dash(rung.accuracy, "{:.1%}"), _or_dash(rung.seconds, "{:g} s")
            rows.append((rung.name, rung.changed, f"{row['epochs']:.4g}", accuracy.strip(), time, faster, *theirs))
        heads = ("rung", "what changed", "epochs", f"{self.tested} accuracy", "training", "times as fast")
        small = "".join(f", {each}" for each in self.experiment.made_small)
        title = f"The ladder ({counted(self.n)}{small})"
        return [Table(title, (*heads, "post: test accuracy", "post: training"), tuple(rows))]

    def remarks(self) -> list[str]:
        lines = []
        if self.tested != "test":
            lines.append(f"evaluated on {self.tested} images, the posts' networks on the test set (--holdout 0)")
        if {"myrtle-single-norm", "myrtle-minibatch"} <= {rung.name for rung in self.experiment.chosen}:
            lines.append("images lie on the device here; of the posts' 323 s less 256 s, 26 s are data loading's")
        if small := self.experiment.made_small:
            lines.append(f"{', '.join(small)}: no figure here is to be held against the posts'")
        return lines + super().remarks()

    def figures(self) -> dict[str, Figure]:
        """Return accuracies and training times by rung, with the posts' own."""
        rungs = [rung for rung in self.experiment.chosen if self.ended(rung.name)]
        accuracies = [[100 * known(run.tta_accuracy) for run in self.ended(rung.name)] for rung in rungs]
        times = [[run.train_seconds for run in self.ended(rung.name)] for rung in rungs]
        theirs = [rung.accuracy and 100 * rung.accuracy for rung in rungs], [rung.seconds for rung in rungs]
        names = tuple(rung.name for rung in rungs)
        return {
            "accuracy": _by_rung(f"{self.tested} accuracy (%)", accuracies, theirs[0], names),
            "seconds": _by_rung("training (s)", times, theirs[1], names),
        }


def _by_rung(what: str, ours: list[list[float]], theirs: list[float | None], names: tuple[str, ...]) -> Figure:
    means = [summarize(values) for values in ours]
    lines = [
        Line([mean.mean for mean in means], range(len(means)), 0, "here", intervals=[mean.interval for mean in means]),
        Line(
            [value or 0.0 for value in theirs],
            [None if value is None else place for place, value in enumerate(theirs)],
            1,
            "the post",
            marks=True,
        ),
    ]
    return Figure(what, "", tuple(lines), rows=names)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
