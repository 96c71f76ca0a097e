"""Every way to go on from an earlier training's weights, side by side: does it catch up with the cold start?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Job, experiment
from fastcifar.experiments.methods import METHODS, Method, Round, chosen
from fastcifar.experiments.result import Failed, Outcome, SeparateArms, known, paired
from fastcifar.experiments.warm_starts import COLD, WARM, WarmStarts, doubts
from fastcifar.recipes import Recipe, change, label
from fastcifar.recipes.declare import setting
from fastcifar.recipes.text import read_changes
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, seconds, summarize

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.diagnose import Plasticity
    from fastcifar.experiments.store import Store
    from fastcifar.models import Network
    from fastcifar.training import RunRecord

Protocol = Literal["half", "online"]
Condition = Literal["plain", "regularized"]
PLASTICITY = "plasticity"
PHASE = "training: start"
"""The phase of a run in which a start does more than to load weights."""


@experiment("methods", group="warm-start")
@dataclass(frozen=True)
class Methods(WarmStarts["MethodsResult"]):
    """Train from the weights of the round before by every method since Ash and Adams 2020, beside the cold start.

    half: half of the images, then all of them. online: more images round by round, each to --until-train-accuracy.
    plain: the recipe; regularized: with standard augmentation and more regularization, where there may be no harm to
    repair. Runs of a seed share the order of their images; differences are seed by seed. Methods that change the
    training have a cold start of their own.
    """

    only: tuple[str, ...] = ()
    """Methods by name, besides the cold and the warm start; none: all."""
    protocols: tuple[Protocol, ...] = ("half", "online")
    """How images come: half, online or both."""
    conditions: tuple[Condition, ...] = ("plain", "regularized")
    """How it is trained: plain, regularized or both."""
    method_settings: tuple[str, ...] = ()
    """Other settings of methods, as METHOD:FIELD=VALUE: a field of its start, or of the recipe."""
    regularized: tuple[str, ...] = ("augment.crop=4", "augment.flip=random", "optimizer.weight_decay=5e-4")
    """What regularized changes in the recipe, as FIELD=VALUE."""
    fraction: float = setting(0.5, above=0, below=1)
    """Share of the images in the first round of half."""
    round_size: int = setting(1000, at_least=1, unit="images")
    """Images that each round of online adds."""
    looked_into: int = setting(1, at_least=0)
    """Runs of each arm, the first ones, whose dormant units, norms, rank and curvature are measured before the first
    step of the last round."""
    until_train_accuracy: float | None = setting(0.99, above=0, at_most=1)
    """End a round of online after the first epoch with this running training accuracy, a fraction."""

    extending = (
        "seed",
        "runs",
        "only",
        "protocols",
        "conditions",
        "regularized",
        "looked_into",
    )  # runs of another recipe are refused
    quick: ClassVar[Mapping[str, Any]] = {"train_size": 2000, "protocols": ("half",), "conditions": ("plain",)}

    def _check(self) -> None:
        super()._check()
        for name in ("only", "protocols", "conditions"):
            values = getattr(self, name)
            self._require(name, len({*values}) == len(values), "each of them once")
            self._require(name, values or name == "only", "one or more")
        _ = self.methods, self.recipes  # which refuse what they do not know

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The methods by name, the warm start first."""
        only = self.only and tuple(dict.fromkeys((WARM, *self.only)))
        return chosen(only, self.method_settings)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The recipe by condition."""
        changed = change(self.recipe, read_changes(self.regularized), "regularized")
        return {
            name: each for name, each in (("plain", self.recipe), ("regularized", changed)) if name in self.conditions
        }

    @property
    def training_methods(self) -> dict[str, Method]:
        """Those that change the training, not the start alone."""
        return {name: each for name, each in self.methods.items() if each.changes}

    @property
    def _factors(self) -> dict[str, float]:
        return {"shrink": self.shrink, "perturb": self.perturb}

    def trained_recipes(self) -> dict[str, Recipe]:
        return self.recipes

    @property
    def subject(self) -> str:
        return f"{label(self.recipe)}, {len(self.methods)} methods"

    def sizes(self, protocol: Protocol, images: int) -> list[int]:
        """Return the training images in each round, of `images` in all."""
        if protocol == "half":
            return [round(images * self.fraction), images]
        return list(range(self.round_size, images + 1, self.round_size))

    def jobs(self, dataset: Dataset) -> list[Job]:
        images, batch_size = len(dataset.train), self.recipe.batch_size
        for protocol in self.protocols:
            sizes = self.sizes(protocol, images)
            if len(sizes) < 2 or sizes[0] < batch_size:
                said = f"{protocol} has rounds of {', '.join(map(str, sizes)) or 'no'} images"
                raise UserError(f"{said}; allowed: two rounds or more, of batch_size, {batch_size}, or more images")
        network = _network(self.recipe, dataset)
        return [
            job
            for seed in self.seeds
            for condition in self.recipes
            for protocol in self.protocols
            for job in self._jobs(condition, protocol, seed, self.sizes(protocol, images), network)
        ]

    def _fitting(self, plain: Recipe, round: Round, network: Network, layers: Sequence[str]) -> dict[str, Recipe]:
        """Return the recipes of the methods that go with a network, by name. Raises UserError for one that does not,
        and that `only` or `method_settings` asks for."""
        recipes, asked = {}, {*self.only, *(word.partition(":")[0] for word in self.method_settings)}
        for name, method in self.methods.items():
            try:
                method.refuse(name, network, layers, self._factors)
                recipes[name] = method.recipe(plain, round)
            except UserError:
                if name in asked:
                    raise
        return recipes

    def _jobs(
        self, condition: str, protocol: Protocol, seed: int, sizes: Sequence[int], network: Network
    ) -> Iterator[Job]:
        """Give the trainings of one seed: of each round first the cold starts, with fresh weights."""
        from fastcifar.models.freezing import layers_of

        plain, until = self.recipes[condition], self.until_train_accuracy if protocol == "online" else None
        modules = layers_of(network.module)
        layers = [
            name for name, each in modules.items() if any(w.requires_grad for w in each.parameters(recurse=False))
        ]
        for number, size in enumerate(sizes):
            steps = size // plain.batch_size
            recipes = self._fitting(plain, Round(steps, is_open=until is not None), network, layers)
            colds = {COLD: plain, **{cold_of(name): recipes[name] for name in self.training_methods if name in recipes}}
            fields: dict[str, Any] = {"train_size": size, "round": number, "until_train_accuracy": until}
            if size == sizes[-1] and seed - self.seed < self.looked_into:
                fields |= {"diagnose": (PLASTICITY,), "moments": 0}
            for arm, recipe in colds.items():
                if arm == COLD or number in (0, len(sizes) - 1):  # between them it answers nothing
                    yield self.job(_key(condition, protocol, size, arm), seed, recipe=recipe, **fields)
            for name, recipe in recipes.items() if number else ():
                before = name if number > 1 else cold_of(name) if cold_of(name) in colds else COLD
                after = f"{_key(condition, protocol, sizes[number - 1], before)}/seed-{seed}"
                start = self.methods[name].begin(layers, self._factors, seed)
                arm = _key(condition, protocol, size, name)
                yield self.job(arm, seed, recipe=recipe, after=after, start=start, **fields)

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> MethodsResult:
        return MethodsResult(self, settings, outcomes)


def _network(recipe: Recipe, dataset: Dataset) -> Network:
    """Return the network of `recipe`, which is not trained."""
    from fastcifar.host import building
    from fastcifar.models import build_model
    from fastcifar.registry import resolve

    with building(0, resolve(recipe.network.builder)):
        return build_model(recipe, len(dataset.classes), dataset.mean, dataset.std, sides=(dataset.train.side,))


def cold_of(method: str) -> str:
    """Return the arm of the cold start that is trained as `method` trains."""
    return f"{COLD}-{method}"


def _key(condition: str, protocol: Protocol, size: int, arm: str) -> str:
    return f"{condition}/{protocol}/{size}/{arm}"


@dataclass(frozen=True)
class Row:
    """What the last rounds of an arm say. Accuracies are fractions; None where no run says it."""

    arm: str
    source: str
    """The paper of its method."""
    n: int
    """Runs that did not fail."""
    test: Summary | None
    train: Summary | None
    """On its own training images."""
    above_cold: Summary | None
    """Test accuracy less that of the cold start, seed by seed."""
    above_warm: Summary | None
    above_own_cold: Summary | None
    """Less that of the cold start that trains as it does, where the method changes the training."""
    seconds: Summary | None
    """Training in the second and later rounds together, in which arms differ; with `start_seconds`."""
    start_seconds: Summary | None
    """The part of them before the first steps, in what the start computes."""
    inside: dict[str, Summary]
    """What was measured before the first step of the last round, by name."""


@dataclass(frozen=True)
class MethodsResult(SeparateArms):
    """The result of `Methods`."""

    experiment: Methods
    inside: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """What was measured before the first step of a run, by its key; what is finite."""

    def add(self, job: Job, outcome: Outcome, store: Store) -> None:
        super().add(job, outcome, store)
        if job.diagnose and not isinstance(outcome, Failed):
            found = cast("Plasticity", store.found(job.key, PLASTICITY)).at_start()
            self.inside[job.key] = {name: value for name, value in found.items() if math.isfinite(value)}

    @property
    def parts(self) -> list[tuple[str, Protocol]]:
        """The conditions and protocols that there are."""
        return list(itertools.product(self.experiment.recipes, self.experiment.protocols))

    @property
    def arms(self) -> list[str]:
        """The arms of a last round: the cold start, the methods that go with the network, and the cold starts that
        train as those do."""
        every = [COLD, *self.experiment.methods, *map(cold_of, self.experiment.training_methods)]
        part = self.parts[0]
        return [arm for arm in every if _key(*part, self._sizes(part[1])[-1], arm) in self.outcomes]

    def rows(self, part: tuple[str, Protocol]) -> list[Row]:
        """Return a row for each arm."""
        return [self._row(part, arm) for arm in self.arms]

    def _row(self, part: tuple[str, Protocol], arm: str) -> Row:
        runs, own = self._runs(part, arm), cold_of(arm)
        rounds = [self._runs(part, arm, number) for number in range(1, len(self._sizes(part[1])))]
        whole = [seed for seed in runs if all(seed in found for found in rounds)]
        key = _key(*part, self._sizes(part[1])[-1], arm)
        looked = [found for seed in runs if (found := self.inside.get(f"{key}/seed-{seed}"))]
        names = dict.fromkeys(name for each in looked for name in each)
        return Row(
            arm,
            source=METHODS[name].source if (name := arm.removeprefix(f"{COLD}-")) in METHODS else "",
            n=len(runs),
            test=_summary(known(run.accuracy) for run in runs.values()),
            train=_summary(known(run.train_split and run.train_split.accuracy) for run in runs.values()),
            above_cold=self.difference(part, arm, COLD),
            above_warm=self.difference(part, arm, WARM),
            above_own_cold=self.difference(part, arm, own) if own in self.arms else None,
            seconds=_summary(sum(found[seed].train_seconds for found in rounds) for seed in whole),
            start_seconds=_summary(sum(found[seed].phases.get(PHASE, 0.0) for found in rounds) for seed in whole),
            inside={
                name: found for name in names if (found := _summary(each[name] for each in looked if name in each))
            },
        )

    def difference(self, part: tuple[str, Protocol], arm: str, other: str) -> Summary | None:
        """Return the test accuracy of `arm` less that of `other` after the last round, over the seeds of which both
        have a run; None where there is none, and of an arm and itself."""
        ours, theirs = self._runs(part, arm), self._runs(part, other)
        seeds = [seed for seed in ours if seed in theirs and arm != other]
        return paired(*([known(runs[seed].accuracy) for seed in seeds] for runs in (ours, theirs))) if seeds else None

    def _runs(self, part: tuple[str, Protocol], arm: str, number: int = -1) -> dict[int, RunRecord]:
        """Return the runs of an arm in round `number`, those that did not fail, by seed."""
        found = self.outcomes.get(_key(*part, self._sizes(part[1])[number], arm), [])
        return {seed: each for seed, each in zip(self.seeds, found, strict=False) if not isinstance(each, Failed)}

    def _sizes(self, protocol: Protocol) -> list[int]:
        return self.experiment.sizes(protocol, self.settings["train_size"])

    def to_dict(self) -> dict[str, Any]:
        parts = [
            {
                "condition": part[0],
                "protocol": part[1],
                "sizes": self._sizes(part[1]),
                "arms": [dataclasses.asdict(row) for row in self.rows(part)],
            }
            for part in self.parts
        ]
        return {**self.settings, "seeds": self.seeds, "parts": parts, **self.counts}

    def tables(self) -> list[Table]:
        tables = []
        for part in self.parts:
            rows, n = self.rows(part), counted(self.n)
            cells = [
                (
                    row.arm + self.failed_words(_key(*part, self._sizes(part[1])[-1], row.arm)),
                    *(_or_dash(each, percent) for each in (row.test, row.train)),
                    *(_or_dash(each, points) for each in (row.above_cold, row.above_own_cold, row.above_warm)),
                    _or_dash(row.seconds, seconds),
                    _or_dash(row.start_seconds if row.start_seconds and row.start_seconds.mean else None, seconds),
                )
                for row in rows
            ]
            heads = ("start", f"{self.tested} accuracy", "train", "above cold", "above its own cold", "above warm")
            heads += ("training", "of which the start")
            tables.append(Table(f"{' '.join(part)}: differences in points, seed by seed ({n})", heads, tuple(cells)))
            if looked := [row for row in rows if row.inside]:
                names = list(dict.fromkeys(name for row in looked for name in row.inside))
                inside = [(row.arm, *(_or_dash(row.inside.get(name), _short) for name in names)) for row in looked]
                count = max(each.n for row in looked for each in row.inside.values())
                tables.append(
                    Table(f"{' '.join(part)}: before the first step (n={count})", ("start", *names), tuple(inside))
                )
        return tables

    def remarks(self) -> list[str]:
        lines, intervals = [], 0
        for part in self.parts:
            where, gap = " ".join(part), self.difference(part, COLD, WARM)
            if gap is not None:
                lines.append(f"{where}: cold - warm: {points(gap)} points of {self.tested} accuracy, n={gap.n}")
                lines += doubts({where: gap})
            rows = {row.arm: row.above_warm for row in self.rows(part) if row.arm in self.experiment.methods}
            bounds = {arm: each.interval for arm, each in rows.items() if each and each.interval}
            for words, names in (
                ("above the warm start", [arm for arm, (low, _) in bounds.items() if low > 0]),
                ("below it", [arm for arm, (_, high) in bounds.items() if high < 0]),
                ("not told apart from it", [arm for arm, (low, high) in bounds.items() if low <= 0 <= high]),
            ):
                if names:
                    lines.append(f"{where}: {words}: {', '.join(names)}")
            intervals += len(bounds)
        if intervals:
            lines.append(f"of {intervals} such intervals about {intervals / 20:.2g} miss 0 by chance alone")
        if left_out := [name for name in self.experiment.methods if name not in self.arms]:
            lines.append(f"left out, as the network has not what they need: {', '.join(left_out)}")
        return lines + super().remarks()

    def figures(self) -> dict[str, Figure]:
        """Return accuracy by training time, and by what was measured before the first step; without the cold starts
        that train as a method does."""
        figures, accuracy = {}, f"{self.tested} accuracy (%)"
        for part in self.parts:
            name = "-".join(part)
            rows = [row for row in self.rows(part) if row.test and not row.arm.startswith(f"{COLD}-")]
            how: dict[str, Any] = {"title": f"{self.title}, {' '.join(part)}, n={self.n}"}
            timed = [(row, row.seconds.mean) for row in rows if row.seconds]
            figures[f"{name}-cost"] = Figure("training after the first round (s)", accuracy, _named(timed), **how)
            for measure in dict.fromkeys(measure for row in rows for measure in row.inside):
                found = [(row, row.inside[measure].mean) for row in rows if measure in row.inside]
                words = f"{measure.replace('_', ' ')} before the first step"
                figures[f"{name}-{measure}"] = Figure(words, accuracy, _named(found), **how)
        return figures


def _named(points: Sequence[tuple[Row, float]]) -> tuple[Line, ...]:
    """Return a mark with its name for each row, at this x."""
    lines = []
    for row, x in points:
        assert row.test
        low, high = row.test.interval or (row.test.mean, row.test.mean)
        color = 1 if row.arm.startswith(COLD) else 0 if row.arm == WARM else 2
        found = {"intervals": [(100 * low, 100 * high)], "marks": True, "note": row.arm}
        lines.append(Line([x], [100 * row.test.mean], color, **found))
    return tuple(lines)


def _summary(values: Iterable[float]) -> Summary | None:
    found = list(values)
    return summarize(found) if found else None


def _or_dash(value: Summary | None, form: Callable[[Summary], str]) -> str:
    return "-" if value is None else form(value)


def _short(value: Summary) -> str:
    return f"{value.mean:.4g}"
