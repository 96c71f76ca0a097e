"""Screen: what many changes of a recipe are worth, all varied at once by a design of Plackett and Burman (1946)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.result import Failed, Outcome, Result, failure_word, known
from fastcifar.recipes import Recipe, change
from fastcifar.recipes.declare import setting
from fastcifar.recipes.factors import Factor, check_factors, read_factor
from fastcifar.recipes.text import Written
from fastcifar.report import Figure, Line, Table
from fastcifar.report.screening import MOST_FACTORS, Effect, Effects, Signs, plackett_burman

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.training import RunRecord

METRICS: dict[str, Callable[[RunRecord], float]] = {
    "loss": lambda record: known(record.tta_loss),
    "accuracy": lambda record: known(record.tta_accuracy),
}
"""What is measured of a run, with the recipe's test-time augmentation: log-loss (nats) and accuracy (a fraction)."""


@experiment("screen")
@dataclass(frozen=True)
class Screen(Experiment["Screening"]):
    """Measure what many changes of a recipe are worth, all varied at once.

    Each run trains with about half of the changes, chosen by a design of Plackett and Burman (1946), so that the effect
    of every change is estimated from all runs. A dozen changes take no more runs than one would. Says what each changes
    in log-loss and accuracy on held-out images, with 95% intervals, and in FLOP, and which are better together. One
    interval in twenty misses by chance, and those that look best are a little worse than they look: confirm them
    together, with `compare`.

    Log-loss decides. It changes with what makes a network surer of itself, too, such as label smoothing and the scale
    of the logits: look at accuracy there.
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    factors: tuple[str, ...] = ()
    """The changes, 2 to 23, a word each: FIELD=VALUE, with and without; FIELD=LOW..HIGH, of two values;
    FIELD=VALUE,FIELD=VALUE, several fields at once. A list is a word with spaces, as in
    "augment.early_crops=24 0.4 28 0.8". Commas within quotes or brackets are a value's own, as in
    'optimizer.layers="head:lr=2,momentum=0.8"'."""
    runs: int = setting(2, at_least=1, at_most=100_000)
    """Rounds: runs of the whole design, each round with a seed of its own."""
    foldover: bool = True
    """Turn every change around in each second round, from with to without: what a change does to the effect of another
    is then in no effect, after an even number of rounds."""
    flop_worth: float | None = setting(None, above=0)
    """Log-loss that 1% more FLOP is worth: changes are then compared at equal FLOP."""

    holdout = 5000
    extending = ("runs", "flop_worth")

    def _check(self) -> None:
        super()._check()
        if len(self.factors) <= MOST_FACTORS:
            check_factors(self.recipe, self.changes)
        if len(self.factors) == 1 or len(self.factors) > MOST_FACTORS:
            raise self._wrong_number()
        if self.factors:
            _ = self.recipes  # refused now

    @cached_property
    def changes(self) -> tuple[Factor, ...]:
        """The factors, read."""
        return tuple(map(read_factor, self.factors))

    @cached_property
    def design(self) -> dict[str, Signs]:
        """`design[arm]`: the levels of the factors in the arm's runs, in the first round and each second after it."""
        return {f"row-{number:02}": signs for number, signs in enumerate(plackett_burman(len(self.factors)), 1)}

    def signs(self, arm: str, round: int) -> Signs:
        """Return the levels of the factors in an arm's run in a round, from 0."""
        signs = self.design[arm]
        return tuple(-sign for sign in signs) if self.foldover and round % 2 else signs

    @cached_property
    def recipes(self) -> dict[Signs, Recipe]:
        """The recipe of each run, by the levels of the factors. Raises UserError for one that cannot be."""
        rounds = range(min(self.runs, 2))
        wanted = dict.fromkeys(self.signs(arm, round) for round in rounds for arm in self.design)
        return {signs: self._recipe(dict(enumerate(signs))) for signs in wanted}

    def _recipe(self, signs: Mapping[int, int]) -> Recipe:
        """Return the recipe with these levels of some factors. Raises UserError, with the fewest factors that it takes,
        for a recipe that cannot be."""
        try:
            return change(self.recipe, self.values(signs), self._told(signs))
        except UserError:
            for pair in itertools.combinations(signs.items(), 2) if len(signs) > 2 else ():
                self._recipe(dict(pair))
            raise

    def values(self, signs: Mapping[int, int]) -> dict[str, Written]:
        """Return the values of fields with these levels of some factors."""
        levels = (self.changes[place].levels(sign) for place, sign in signs.items())
        return {name: text for each in levels for name, text in each.items()}

    def _told(self, signs: Mapping[int, int]) -> str:
        """Return the place of an error of the runs with these levels."""
        words = [f"{name}={text}" for name, text in self.values(signs).items()]
        return f"factors {' and '.join(words) or 'left out'}, in one run"

    def _wrong_number(self) -> UserError:
        count, allowed = len(self.factors), f"2 to {MOST_FACTORS}, or for one 'fastcifar compare'"
        return UserError(f"factors names {count or 'no'} change{'s' * (count > 1)}; allowed: {allowed}")

    def jobs(self, dataset: Dataset) -> list[Job]:
        from fastcifar.training.refusals import refuse_untrainable

        if not self.factors:
            raise self._wrong_number()
        networks: dict[Any, Any] = {}
        for signs, recipe in self.recipes.items():
            try:
                refuse_untrainable(recipe, dataset, networks)
            except UserError as error:
                raise UserError(f"{self._told(dict(enumerate(signs)))}: {error}") from None
        rounds = enumerate(self.seeds)
        return [Job(arm, seed, self.recipes[self.signs(arm, n)]) for n, seed in rounds for arm in self.design]

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Screening:
        return Screening(self, settings, outcomes)


@dataclass(frozen=True)
class FactorEffect:
    """What a change does: with it less without it, the mean over the runs."""

    factor: Factor
    loss: Effect | None
    """Log-loss in nats; None where the runs that are left cannot tell it."""
    accuracy: Effect | None
    """A fraction."""
    flop: float | None
    """Training FLOP that it adds to the recipe, as a share of the recipe's; None where they cannot be counted."""
    net: Effect | None
    """Log-loss at equal FLOP; None where `flop_worth` is, or one of the two."""
    failed: tuple[int, int]
    """Runs that failed without it and with it; they are in no other number."""


@dataclass(frozen=True)
class Screening(Result):
    """The result of `Screen`."""

    experiment: Screen

    @property
    def n(self) -> int:
        """Whole rounds, runs that failed included; 0 where every run did."""
        return min(map(len, self.outcomes.values())) if self._kept else 0

    @property
    def _runs(self) -> list[tuple[str, int, Signs, Outcome]]:
        """The arm, the round, the levels of the factors and the outcome of each run."""
        runs = ((arm, n, outcome) for arm, outcomes in self.outcomes.items() for n, outcome in enumerate(outcomes))
        return [(arm, n, self.experiment.signs(arm, n), outcome) for arm, n, outcome in runs]

    @property
    def _kept(self) -> list[tuple[str, int, Signs, RunRecord]]:
        return [(*run, outcome) for *run, outcome in self._runs if not isinstance(outcome, Failed)]  # pyright: ignore[reportReturnType]

    def fit(self, metric: str) -> Effects:
        """Return the effects on a metric of `METRICS`. Runs of one recipe and seed say no more than one of them."""
        single = {(n, self.experiment.recipes[signs]): (n, signs, record) for _, n, signs, record in self._kept}
        rounds, signs, records = zip(*single.values(), strict=True)
        return Effects(signs, rounds, [METRICS[metric](record) for record in records])

    def effects(self) -> list[FactorEffect]:
        """Return what each change does, that with the lowest log-loss first."""
        loss, accuracy = map(self.fit, METRICS)
        found = []
        for place, factor in enumerate(self.experiment.changes):
            flop, effect = self._costs[factor.word], loss.of(place)
            failed = [signs[place] for _, _, signs, outcome in self._runs if isinstance(outcome, Failed)]
            counts = failed.count(-1), failed.count(1)
            found.append(FactorEffect(factor, effect, accuracy.of(place), flop, self._net(effect, flop), counts))
        return sorted(found, key=lambda each: each.loss.mean if each.loss else float("inf"))

    def _net(self, effect: Effect | None, flop: float | None) -> Effect | None:
        worth = self.experiment.flop_worth
        if worth is None or effect is None or flop is None:
            return None
        more = 100 * flop * worth
        bounds = effect.interval and (effect.interval[0] + more, effect.interval[1] + more)
        return Effect(effect.mean + more, bounds)

    @cached_property
    def _costs(self) -> dict[str, float | None]:
        """The FLOP that each factor adds, as a share of the recipe's, by its word."""
        costs: dict[str, float | None] = {}
        for factor in self.experiment.changes:
            whole, low, high = (self._count(levels) for levels in ({}, factor.low, factor.high))
            costs[factor.word] = None if whole is None or low is None or high is None else (high - low) / whole
        return costs

    def _count(self, levels: Mapping[str, Any]) -> int | None:
        return _flop(change(self.experiment.recipe, levels), *self._sizes)

    @cached_property
    def _sizes(self) -> tuple[int, int, int, int]:
        """The training and test images, the classes and the side of the images."""
        *_, record = self._kept[0]
        data = record.dataset
        return self.settings["train_size"], self.settings["test_size"], len(data.classes), data.side

    def choice(self) -> list[tuple[FactorEffect, int]]:
        """Return the changes whose 95% interval, at equal FLOP with `flop_worth`, leaves zero out, each with its better
        level, 1 or -1, where that is not the recipe's own."""
        chosen = []
        for each in self.effects():
            decides = each.loss if self.experiment.flop_worth is None else each.net
            if decides and decides.interval and not decides.interval[0] <= 0 <= decides.interval[1]:
                sign = 1 if decides.mean < 0 else -1
                if change(self.experiment.recipe, each.factor.levels(sign)) != change(self.experiment.recipe, {}):
                    chosen.append((each, sign))
        return chosen

    def to_dict(self) -> dict[str, Any]:
        fits = {metric: self.fit(metric) for metric in METRICS}
        runs = [
            {
                **{"arm": arm, "seed": self.experiment.seeds[n], "signs": signs},
                **(outcome.to_json() if isinstance(outcome, Failed) else _measured(outcome)),
                "flop": _flop(self.experiment.recipes[signs], *self._sizes),
            }
            for arm, n, signs, outcome in self._runs
        ]
        return {
            **self.settings,
            **{"n": self.n, "df": fits["loss"].df, "std": {metric: fit.std for metric, fit in fits.items()}},
            "effects": [dataclasses.asdict(effect) for effect in self.effects()],
            "better": {name: text for each, sign in self.choice() for name, text in each.factor.levels(sign).items()},
            **self.counts,
            "runs": runs,
        }

    def tables(self) -> list[Table]:
        heads, rows = ["change", "log-loss", "accuracy, points", "FLOP"], []
        worth, fails = self.experiment.flop_worth is not None, bool(self.failed)
        heads += ["log-loss at equal FLOP"] * worth + ["failed without, with"] * fails
        for each in self.effects():
            cells = [_nats(each.loss), _in_points(each.accuracy), "-" if each.flop is None else f"{each.flop:+.1%}"]
            cells += [_nats(each.net)] * worth + ["{}, {}".format(*each.failed)] * fails
            rows.append((each.factor.word, *cells))
        title = f"With each change, less without it: {len(self._kept)} runs, {self._intervals()}"
        return [Table(title, tuple(heads), tuple(rows))]

    def _intervals(self) -> str:
        """Return where the intervals come from, in words."""
        df = self.fit("loss").df
        if not df:
            return "no intervals, as no run is left to say how runs differ: more --runs, or fewer changes"
        if self.fit("loss").std is None:
            return "no intervals, as nothing is left that the changes do not explain"
        rounds = len({n for _, n, _, _ in self._kept})
        source = f"the residuals of {rounds} rounds" if rounds > 1 else "the columns of the design that no change takes"
        return f"± 95% interval of each by itself: t, {df} degree{'s' * (df > 1)} of freedom, from {source}"

    def remarks(self) -> list[str]:
        lines = []
        if self.failed:
            count, (arm, first) = len(self.failed), self.failed[0]
            word = failure_word([each for _, each in self.failed])
            runs = f"{count} run{'s' * (count > 1)} {word} ({arm}: {first.reason})"
            lines.append(f"{runs}; effects are by least squares over the {len(self._kept)} others, no longer balanced")
            if unknown := [each.factor.word for each in self.effects() if each.loss is None]:
                lines.append(f"the runs that are left cannot tell the effect of {' and '.join(unknown)}")
        if not self.fit("loss").is_clear:
            how = "" if self.failed else "; an even number of rounds, with --foldover true, clears them of that"
            lines.append(f"effects are mixed with what pairs of changes do together{how}")
        return [*lines, self._better()]

    def _better(self) -> str:
        """Return the changes that are better together, as flags, than with the other value of each."""
        if self.fit("loss").std is None:
            return "no change is said to be better, as nothing has an interval"
        chosen = self.choice()
        if not chosen:
            return "no change is seen to be better"
        signs = {each.factor.word: sign for each, sign in chosen}
        loss = self.fit("loss").together([signs.get(word, 0) for word in self.experiment.factors])
        levels, others = (
            {name: text for each, sign in chosen for name, text in each.factor.levels(side * sign).items()}
            for side in (1, -1)
        )
        try:
            flop, whole = self._count(levels), self._count(others)
        except UserError as error:
            return f"the better changes do not go together: {error}"
        more = f", FLOP {(flop - whole) / whole:+.1%}" if flop and whole else ""
        recipe = self.experiment.recipe
        than = "" if change(recipe, others) == change(recipe, {}) else ", each against its other value"
        flags = " ".join(f"--{_flag(name)} {shlex.quote(text)}" for name, text in levels.items())
        return f"better together (log-loss {_nats(loss)}{more}{than}; to be confirmed): {flags}"

    def figures(self) -> dict[str, Figure]:
        effects = self.effects()
        names = tuple(each.factor.word for each in effects)
        places = list(range(len(effects)))
        figures = {}
        for metric, scale, label in (("loss", 1, "log-loss (nats)"), ("accuracy", 100, "accuracy (points)")):
            found: list[Effect | None] = [getattr(each, metric) for each in effects]
            means = [scale * each.mean if each else 0.0 for each in found]
            bounds = [
                each.interval and (scale * each.interval[0], scale * each.interval[1]) if each else None
                for each in found
            ]
            line = Line(
                means,
                [place if each else None for place, each in zip(places, found, strict=True)],
                0,
                intervals=bounds,
                marks=True,
                label="95% interval",
            )
            figures[metric] = Figure(f"with the change less without it: {label}", "", (line,), dashed_at=0, rows=names)
        return figures


@functools.lru_cache(maxsize=1024)
def _flop(recipe: Recipe, train_size: int, test_size: int, classes: int, side: int) -> int | None:
    """Return the FLOP of a training of `recipe`; None where they cannot be counted, as of some networks of a user's
    own."""
    from fastcifar.costs.flops import count_recipe

    with contextlib.suppress(UserError, RuntimeError):
        return count_recipe(recipe, train_size, test_size, classes, side).training_flop
    return None


def _measured(record: RunRecord) -> dict[str, float]:
    return {**{metric: of(record) for metric, of in METRICS.items()}, "train_seconds": record.train_seconds}


def _flag(name: str) -> str:
    return name.removesuffix(".kind").replace("_", "-")


def _nats(effect: Effect | None) -> str:
    return _with_interval(effect, 1, 4)


def _in_points(effect: Effect | None) -> str:
    return _with_interval(effect, 100, 2)


def _with_interval(effect: Effect | None, scale: float, digits: int) -> str:
    if effect is None:
        return "-"
    half = "" if effect.interval is None else f" ± {scale * (effect.interval[1] - effect.mean):.{digits}f}"
    return f"{scale * effect.mean:+.{digits}f}{half}"
