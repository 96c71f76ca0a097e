"""What the runs of `warm-start methods` say: a row for each arm, tables, figures and the answer in words."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fastcifar.experiments.experiment import Job
from fastcifar.experiments.methods import METHODS, cold_of, key_of
from fastcifar.experiments.result import Failed, Outcome, SeparateArms, known, paired
from fastcifar.experiments.warm_starts import COLD, WARM, doubts
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, summarize
from fastcifar.report.tables import seconds_and_spread

if TYPE_CHECKING:
    from fastcifar.diagnose import Plasticity
    from fastcifar.experiments.named.methods import Methods
    from fastcifar.experiments.store import Store
    from fastcifar.training import RunRecord

PLASTICITY = "plasticity"
PHASE = "training: start"
"""The phase of a run in which a start does more than to load weights."""


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
    seconds: list[float]
    """Training in the second and later rounds together, in which arms differ; with `start_seconds`. One for each run:
    it is their median that is shown, since one run beside another program says little."""
    start_seconds: list[float]
    """The part of them before the first steps, in what the start computes."""
    replaced: Summary | None
    """Units that began again in the last round, where the method does that."""
    inside: list[dict[str, Summary]]
    """What was measured before the first step of each round, by name."""


@dataclass(frozen=True)
class MethodsResult(SeparateArms):
    """The result of `Methods`."""

    experiment: Methods
    inside: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """What was measured before the first step of a run, by its key; what is finite."""

    def add(self, job: Job, outcome: Outcome, store: Store) -> None:
        super().add(job, outcome, store)
        if job.diagnose and not isinstance(outcome, Failed):
            found = cast("Plasticity | None", store.found(job.key, PLASTICITY))
            measured = found.at_start() if found else {}  # its file could not be written
            self.inside[job.key] = {name: value for name, value in measured.items() if math.isfinite(value)}

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The conditions and protocols that there are."""
        return list(itertools.product(self.experiment.recipes, self.experiment.protocols))

    @property
    def arms(self) -> list[str]:
        """The arms of a last round: the cold start, the methods that go with the network, and the cold starts that
        train as those do."""
        every = [COLD, *self.experiment.methods, *map(cold_of, self.experiment.training_methods)]
        part = self.parts[0]
        return [arm for arm in every if key_of(*part, self._sizes(part[1])[-1], arm) in self.outcomes]

    def rows(self, part: tuple[str, str]) -> list[Row]:
        """Return a row for each arm."""
        return [self._row(part, arm) for arm in self.arms]

    def _row(self, part: tuple[str, str], arm: str) -> Row:
        runs, own = self._runs(part, arm), cold_of(arm)
        rounds = [self._runs(part, arm, number) for number in range(1, len(self._sizes(part[1])))]
        whole = [seed for seed in runs if all(seed in found for found in rounds)]
        return Row(
            arm,
            source=METHODS[name].source if (name := arm.removeprefix(f"{COLD}-")) in METHODS else "",
            n=len(runs),
            test=_summary(known(run.accuracy) for run in runs.values()),
            train=_summary(known(run.train_split and run.train_split.accuracy) for run in runs.values()),
            above_cold=self.difference(part, arm, COLD),
            above_warm=self.difference(part, arm, WARM),
            above_own_cold=self.difference(part, arm, own) if own in self.arms else None,
            seconds=[sum(found[seed].train_seconds for found in rounds) for seed in whole],
            start_seconds=[sum(found[seed].phases.get(PHASE, 0.0) for found in rounds) for seed in whole],
            replaced=_summary(run.units_replaced for run in runs.values() if run.units_replaced is not None),
            inside=[self._inside(key_of(*part, size, arm)) for size in self._sizes(part[1])],
        )

    def _inside(self, arm: str) -> dict[str, Summary]:
        """Return what was measured before the first step of an arm's runs, by name."""
        looked = [found for seed in self.seeds if (found := self.inside.get(f"{arm}/seed-{seed}"))]
        names = dict.fromkeys(name for each in looked for name in each)
        return {name: summarize([each[name] for each in looked if name in each]) for name in names}

    def difference(self, part: tuple[str, str], arm: str, other: str) -> Summary | None:
        """Return the test accuracy of `arm` less that of `other` after the last round, over the seeds of which both
        have a run; None where there is none, and of an arm and itself."""
        ours, theirs = self._runs(part, arm), self._runs(part, other)
        seeds = [seed for seed in ours if seed in theirs and arm != other]
        return paired(*([known(runs[seed].accuracy) for seed in seeds] for runs in (ours, theirs))) if seeds else None

    def _runs(self, part: tuple[str, str], arm: str, number: int = -1) -> dict[int, RunRecord]:
        """Return the runs of an arm in round `number`, those that did not fail, by seed."""
        found = self.outcomes.get(key_of(*part, self._sizes(part[1])[number], arm), [])
        return {seed: each for seed, each in zip(self.seeds, found, strict=False) if not isinstance(each, Failed)}

    def _sizes(self, protocol: str) -> list[int]:
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
                    row.arm + self.failed_words(key_of(*part, self._sizes(part[1])[-1], row.arm)),
                    *(_or_dash(each, percent) for each in (row.test, row.train)),
                    *(_or_dash(each, points) for each in (row.above_cold, row.above_own_cold, row.above_warm)),
                    _median(row.seconds),
                    _median(row.start_seconds if any(row.start_seconds) else []),
                )
                for row in rows
            ]
            heads = ("start", f"{self.tested} accuracy", "train", "above cold", "above its own cold", "above warm")
            heads += ("training, median", "of which the start")
            tables.append(Table(f"{' '.join(part)}: differences in points, seed by seed ({n})", heads, tuple(cells)))
            if looked := [row for row in rows if row.inside[-1]]:
                names = list(dict.fromkeys(name for row in looked for name in row.inside[-1]))
                inside = [(row.arm, *(_or_dash(row.inside[-1].get(name), _short) for name in names)) for row in looked]
                count = max(each.n for row in looked for each in row.inside[-1].values())
                tables.append(
                    Table(
                        f"{' '.join(part)}: before the first step of the last round (n={count})",
                        ("start", *names),
                        tuple(inside),
                    )
                )
        return tables

    def remarks(self) -> list[str]:
        lines, intervals = [], 0
        for part in self.parts:
            where, gap = " ".join(part), self.difference(part, COLD, WARM)
            if gap is not None:
                lines.append(f"{where}: cold - warm: {points(gap)} points of {self.tested} accuracy, n={gap.n}")
                lines += doubts({where: gap})
            rows = self.rows(part)
            above = {row.arm: row.above_warm for row in rows if row.arm in self.experiment.methods}
            bounds = {arm: each.interval for arm, each in above.items() if each and each.interval}
            for words, names in (
                ("above the warm start", [arm for arm, (low, _) in bounds.items() if low > 0]),
                ("below it", [arm for arm, (_, high) in bounds.items() if high < 0]),
                ("not told apart from it", [arm for arm, (low, high) in bounds.items() if low <= 0 <= high]),
            ):
                if names:
                    lines.append(f"{where}: {words}: {', '.join(names)}")
            intervals += len(bounds)
            replaced = [f"{row.arm} {row.replaced.mean:g}" for row in rows if row.replaced]
            if replaced:
                lines.append(f"{where}: units that began again in the last round, mean: {', '.join(replaced)}")
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
            timed = [(row, statistics.median(row.seconds)) for row in rows if row.seconds]
            figures[f"{name}-cost"] = Figure(
                "training after the first round, median (s)", accuracy, _named(timed), **how
            )
            for measure in dict.fromkeys(measure for row in rows for measure in row.inside[-1]):
                found = [(row, row.inside[-1][measure].mean) for row in rows if measure in row.inside[-1]]
                words = f"{measure.replace('_', ' ')} before the first step of the last round"
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


def _median(seconds: Sequence[float]) -> str:
    return seconds_and_spread(seconds, statistics.median) if seconds else "-"


def _short(value: Summary) -> str:
    return f"{value.mean:.4g}"
