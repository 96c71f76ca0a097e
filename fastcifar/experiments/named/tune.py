"""Tune fields of a recipe by cyclical coordinate descent, as in "How to train your ResNet 5" (Page 2018)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fastcifar.errors import UserError
from fastcifar.experiments.descent import Point, Visit, descend
from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.named.compare import METRICS
from fastcifar.experiments.result import Failed, Outcome, Result, failure_word, paired, summary
from fastcifar.recipes import Recipe, change, to_toml
from fastcifar.recipes.declare import setting
from fastcifar.recipes.grid import Grid, grid_of
from fastcifar.recipes.text import to_text
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, summarize
from fastcifar.report.tables import nats

if TYPE_CHECKING:
    from fastcifar.data import Dataset

DEFAULT_FIELDS = ("optimizer.lr", "optimizer.momentum", "optimizer.weight_decay")
"""What the post tunes, in its order."""
_START = "start"
_GOES_ON = "with more the same command goes on"


@experiment("tune")
@dataclass(frozen=True)
class Tune(Experiment["Tuning"]):
    """Tune a recipe's numbers, one field at a time, from wherever it stands.

    Each field in turn is doubled, and the recipe trained again, until held-out images say that it got worse; halved,
    where the first doubling does not help. A momentum moves by its distance from 1. It ends when a whole cycle through
    the fields brings nothing: cyclical coordinate descent with a very crude line search (Page 2018, "How to train your
    ResNet 5"). The start is the recipe with the flags of its fields. Every training is kept by its values, and none is
    done twice. Ends with the trace, and with the recipe that was found as tuned.toml.

    A run that diverges or has no memory counts as worst. What looks best of many is a little worse than it looks:
    confirm it (`compare`).
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    fields: tuple[str, ...] = ()
    """The fields, by dotted names, in the order in which to tune them: any with a number, or numbers, which move
    together. Integers stay integers. None: optimizer.lr, optimizer.momentum and optimizer.weight_decay, those that the
    recipe has and that can be moved."""
    factor: float = setting(2.0, above=1, at_most=1000)
    """What a step multiplies or divides by."""
    by: Literal["loss", "accuracy"] = "loss"
    """The measure that decides, a mean over the runs. Log-loss spreads less, but changes with what makes a network
    surer of itself, too: where label smoothing or the scale of the logits is tuned, take accuracy."""
    runs: int = setting(1, at_least=1, at_most=100_000)
    """Runs of each point, with seeds S, S+1, ...: the same at every point."""
    most_trainings: int = setting(100, at_least=1)
    """End after so many trainings, kept ones included; with more the same command goes on."""
    most_cycles: int = setting(10, at_least=1)
    """End after so many cycles through the fields."""

    holdout = 5000
    extending = ("runs", "fields", "factor", "by", "most_trainings", "most_cycles")
    ends_early: ClassVar[bool] = True

    def _check(self) -> None:
        super()._check()
        self._require("most_trainings", self.most_trainings >= self.runs, f"runs, {self.runs}, or more")
        names = [grid.field for grid in self.grids]  # a field that is none is refused now
        for place, name in enumerate(names):
            if name in names[:place]:
                raise UserError(f"fields has {name} twice; allowed: each field once")
        if not names:
            raise UserError(
                f"fields is empty, and {', '.join(DEFAULT_FIELDS)} cannot be moved; allowed: fields to tune"
            )

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """The values of each field that may be tried. Raises UserError for a field that is none."""
        if self.fields:
            return tuple(grid_of(self.recipe, each.replace("-", "_"), self.factor) for each in self.fields)
        found = []
        for each in DEFAULT_FIELDS:
            try:
                found.append(grid_of(self.recipe, each, self.factor))
            except UserError:  # AdamW has no momentum, and Adam no decay by default
                continue
        return tuple(found)

    def values(self, point: Point) -> dict[str, Any]:
        """Return the fields' values at a point."""
        return {grid.field: grid.value(power) for grid, power in zip(self.grids, point, strict=True)}

    def recipe_at(self, point: Point, **more: Any) -> Recipe:
        """Return the recipe at a point. Raises UserError where its fields are out of bounds."""
        return change(self.recipe, {**self.changes(point), **more})

    def changes(self, point: Point) -> dict[str, Any]:
        """Return the values of those fields that are not as at the start."""
        return {grid.field: grid.value(power) for grid, power in zip(self.grids, point, strict=True) if power}

    def arm(self, point: Point) -> str:
        """Return the name of a point, that of the values that are not the start's."""
        words = (f"{name}_{'-'.join(map(repr, _flat(value)))}" for name, value in sorted(self.changes(point).items()))
        return "/".join(words) or _START

    def move(self, point: Point, axis: int, direction: int) -> Point | None:
        """Return the next point along an axis; None where the value stays the same."""
        power = self.grids[axis].step(point[axis], direction)
        return None if power is None else (*point[:axis], power, *point[axis + 1 :])

    @property
    def most_jobs(self) -> int:
        return self.most_trainings

    def refuse_processes(self, count: int) -> None:
        if count > self.runs:
            said = f"{count} processes are to share the runs of each point, and runs is {self.runs}"
            raise UserError(f"{said}; allowed: no more processes than runs (--runs, --parallel)")

    def jobs(self, dataset: Dataset) -> list[Job]:
        return self._jobs_at((0,) * len(self.grids), dataset)

    def _jobs_at(self, point: Point, dataset: Dataset) -> list[Job]:
        from fastcifar.training.refusals import refuse_untrainable

        recipe = self.recipe_at(point)
        refuse_untrainable(recipe, dataset, {})
        return [Job(self.arm(point), seed, recipe) for seed in self.seeds]

    def next_jobs(self, dataset: Dataset, result: Tuning) -> list[Job]:
        while visit := result.search.wanted:
            try:
                return self._jobs_at(visit.point, dataset)
            except UserError as error:  # out of bounds, or more images in a batch than there are
                result.outcomes[self.arm(visit.point)] = [Refused(str(error))] * self.runs
        return []

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Tuning:
        return Tuning(self, settings, outcomes)


class Refused(Failed):
    """A point that cannot be trained: a field is out of its bounds, say."""

    word: ClassVar[str] = "refused"


@dataclass(frozen=True)
class Step:
    """A point that the search has seen."""

    visit: Visit
    runs: list[Outcome]
    trained: int
    """Trainings up to its own."""
    is_best: bool = True
    """It is the best so far, as the start is."""

    @property
    def failure(self) -> Failed | None:
        """The first run that failed; None: the point counts."""
        return next((run for run in self.runs if isinstance(run, Failed)), None)

    def values(self, metric: str) -> list[float]:
        """Return the "loss" or the "accuracy" of each run that did not fail."""
        return [METRICS[metric](run) for run in self.runs if not isinstance(run, Failed)]

    def cost(self, metric: str) -> float:
        """Return what is to be small: the mean loss, or -1 times the mean accuracy; infinite where a run failed."""
        if self.failure:
            return math.inf
        return statistics.fmean(self.values(metric)) * (-1 if metric == "accuracy" else 1)


@dataclass(frozen=True)
class Search:
    """A search, as far as it has come."""

    steps: list[Step]
    """In the order in which they were asked for, the start first; a point that is met again is in it once."""
    wanted: Visit | None
    """What is to be trained next; None: it has ended."""
    ended: str = ""
    """Why it did, in words."""

    @property
    def best(self) -> list[Step]:
        """The best so far, for each of `steps`."""
        return list(itertools.accumulate(self.steps, lambda best, step: step if step.is_best else best))


@dataclass(frozen=True)
class Tuning(Result):
    """The result of `Tune`."""

    experiment: Tune
    by: ClassVar[str] = "point"

    @property
    def n(self) -> int:
        """Runs of each point; 0 where no point has been trained without a failure."""
        best = self.search.best
        return self.experiment.runs if best and not best[-1].failure else 0

    @property
    def failed(self) -> list[tuple[str, Failed]]:
        return [(arm, each) for arm, each in super().failed if not isinstance(each, Refused)]

    @property
    def search(self) -> Search:
        """The search through the outcomes that there are."""
        tune, steps, trained, least = self.experiment, [], 0, math.inf
        visits = descend(len(tune.grids), tune.move, tune.most_cycles)
        try:
            visit = next(visits)
            while True:
                runs = self.outcomes.get(tune.arm(visit.point), [])
                is_trained = not any(isinstance(run, Refused) for run in runs)
                trained += tune.runs * is_trained
                if trained > tune.most_trainings:
                    return Search(steps, None, f"--most-trainings {tune.most_trainings} ended it: {_GOES_ON}")
                if len(runs) < tune.runs:
                    return Search(steps, visit)
                cost = Step(visit, runs, trained).cost(tune.by)
                steps.append(Step(visit, runs, trained, is_best=cost < least or not steps))
                least = min(cost, least)
                visit = visits.send(cost)
        except StopIteration as end:
            if end.value:
                return Search(steps, None, "a whole cycle through the fields brought nothing: it has ended")
            return Search(steps, None, f"--most-cycles {tune.most_cycles} ended it: {_GOES_ON}")

    @property
    def start(self) -> Step:
        """The recipe as it was given, which has been trained."""
        return self.search.steps[0]

    @property
    def found(self) -> Step:
        """The best point, at the end or so far."""
        return self.search.best[-1]

    @property
    def recipe(self) -> Recipe:
        """The recipe that was found."""
        name = f"{self.experiment.recipe.name[:248]}-tuned"
        return self.experiment.recipe_at(self.found.visit.point, name=name)

    def difference(self, metric: str) -> Summary | None:
        """Return "loss" or "accuracy" of what was found less that of the start, seed by seed; None where a run of these
        failed."""
        if self.start.failure or self.found.failure:
            return None
        return paired(self.found.values(metric), self.start.values(metric))

    def _field(self, step: Step) -> tuple[str, Any]:
        """Return the field that a step moved, and its value there."""
        if step.visit.axis is None:
            return _START, None
        grid = self.experiment.grids[step.visit.axis]
        return grid.field, grid.value(step.visit.point[step.visit.axis])

    def to_dict(self) -> dict[str, Any]:
        tune, search = self.experiment, self.search
        steps = []
        for step in search.steps:
            field, value = self._field(step)
            scores = {metric: None if step.failure else summary(step.values(metric)) for metric in METRICS}
            told = {"failure": step.failure.to_json() if step.failure else None, "is_best": step.is_best}
            steps.append({"cycle": step.visit.cycle, "field": field, "value": value, **scores, **told})
        differences = {metric: self.difference(metric) for metric in METRICS}
        return {
            **self.settings,
            **{name: getattr(tune, name) for name in tune.extending},
            "fields": [grid.field for grid in tune.grids],
            "start": tune.values(self.start.visit.point),
            "found": tune.values(self.found.visit.point),
            "difference": {metric: each and dataclasses.asdict(each) for metric, each in differences.items()},
            "trainings": search.steps[-1].trained,
            "ended": search.ended or None,
            **self.counts,
            "steps": steps,
        }

    def tables(self) -> list[Table]:
        tune, rows = self.experiment, []
        for number, (step, best) in enumerate(zip(self.search.steps, self.search.best, strict=True)):
            field, value = self._field(step)
            cells = [step.failure.word, "-"] if step.failure else [_cell(step, metric) for metric in METRICS]
            cells += [str(len(step.values(tune.by))), _cell(best, tune.by)]
            rows.append((str(number), field, "" if value is None else to_text(value), *cells))
        heads = ("step", "field", "value", f"{self.tested} log-loss", "accuracy", "n", f"best {tune.by} so far")
        start, found = tune.values(self.start.visit.point), tune.values(self.found.visit.point)
        ends = [(name, to_text(start[name]), to_text(found[name]), "") for name in start]
        for metric, show in (("loss", lambda each: nats(each, "+")), ("accuracy", points)):
            less = self.difference(metric)
            ends.append((metric, _cell(self.start, metric), _cell(self.found, metric), show(less) if less else "-"))
        return [
            Table(f"Trace, by {tune.by} ({counted(tune.runs)})", heads, tuple(rows)),
            Table("Found", ("", "start", "found", "found - start"), tuple(ends)),
        ]

    def remarks(self) -> list[str]:
        search, tune = self.search, self.experiment
        lines = [search.ended] if search.ended else []
        if found := tune.changes(self.found.visit.point):
            flags = (f"--{name.replace('_', '-')} {' '.join(map(repr, _flat(each)))}" for name, each in found.items())
            lines.append(f"found: {' '.join(flags)} (tuned.toml, for train --recipe)")
            lines.append(f"the best of {len(search.steps)} points looks a little better than it is: confirm it")
            gain = self.difference(tune.by)
            if gain and gain.interval and gain.interval[0] <= 0 <= gain.interval[1]:
                lines.append(f"its gain in {tune.by} over the start is within the interval: it may be none")
        else:
            lines.append("nothing better than the start was found")
        refused = [step.failure for step in search.steps if isinstance(step.failure, Refused)]
        if refused:
            lines.append(f"{len(refused)} point{'s' * (len(refused) > 1)} cannot be trained ({refused[0].reason})")
        if self.failed:
            (arm, first), word = self.failed[0], failure_word([each for _, each in self.failed])
            count = f"{len(self.failed)} run{'s' * (len(self.failed) > 1)} {word}"
            lines.append(f"{count}; a point with one counts as worst ({arm}: {first.reason})")
        return lines

    def files(self) -> dict[str, str]:
        return {**super().files(), "tuned.toml": to_toml(self.recipe)}

    def figures(self) -> dict[str, Figure]:
        """Return the score of each point and of the best so far, and the fields' values at the latter, by trainings."""
        tune, by = self.experiment, self.experiment.by
        pairs = zip(self.search.steps, self.search.best, strict=True)
        steps, best = zip(*(pair for pair in pairs if not isinstance(pair[0].failure, Refused)), strict=True)
        x, scale = [step.trained for step in steps], 100 if by == "accuracy" else 1

        def scores(found: Sequence[Step]) -> list[float | None]:
            return [None if step.failure else scale * statistics.fmean(step.values(by)) for step in found]

        what = f"{self.tested} accuracy (%)" if by == "accuracy" else f"{self.tested} log-loss (nats)"
        lines = Line(x, scores(steps), 0, "each point", marks=True), Line(x, scores(best), 1, "best so far")
        values = [
            Line(
                x,
                [tune.factor ** step.visit.point[axis] for step in best],
                axis,
                f"1 / (1 - {grid.field})" if grid.from_one else grid.field,
            )
            for axis, grid in enumerate(tune.grids)
        ]
        return {
            "trace": Figure("trainings", what, lines),
            "values": Figure("trainings", "best so far, as a multiple of the start", tuple(values), log_y=True),
        }


def _cell(step: Step, metric: str) -> str:
    """Return a mean over the runs of a point with its interval; "-" where a run failed."""
    if step.failure:
        return "-"
    return (percent if metric == "accuracy" else nats)(summarize(step.values(metric)))


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
