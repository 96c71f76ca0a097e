"""How high may the rate be, with batch norm and without, from larger and smaller initial weights, and with other
networks? (Page, How to train your ResNet 6: Weight decay, 2018, and 7: Batch norm, 2019.)"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.errors import UserError
from fastcifar.escape import in_file_name
from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.result import Diverged, Failed, Outcome, SeparateArms, known
from fastcifar.recipes import Recipe, change, get_recipe, label, narrow
from fastcifar.recipes.declare import setting
from fastcifar.report import Figure, Line, Summary, Table, counted, summarize
from fastcifar.report.tables import nats
from fastcifar.start import ColdStart

if TYPE_CHECKING:
    from fastcifar.data import Dataset
    from fastcifar.experiments.store import Store

CURVATURE = "curvature"
_SCALES = "scales, of which no two have the same six digits"


@experiment("stable-rate")
@dataclass(frozen=True)
class StableRate(Experiment["StableRates"]):
    """Find the highest stable learning rate of a recipe, by doubling until the training diverges.

    Trained are the recipe and the same without batch norm, from each scale of the initial weights, with its network and
    those of other recipes; a rate is stable where the training ends with a log-loss below that of guessing, and the
    best one is that with the lowest. The first training of each also measures the curvature of the loss: the largest
    eigenvalue of its Hessian, below 2 over which gradient descent is stable.
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    runs: int = setting(3, at_least=1, at_most=100_000)
    """Runs of each rate, each of which doubles on its own."""
    first_rate: float = setting(0.0, at_least=0)
    """The first rate; 0: the recipe's over 32."""
    doublings: int = setting(10, at_least=0, at_most=100)
    """How often the rate is doubled at most."""
    init_scales: tuple[float, ...] = setting((1.0,), above=0)
    """The initial matrices and filters are multiplied by these, an arm each."""
    norms: tuple[bool, ...] = (True, False)
    """With batch norm (true), without it (false), or both."""
    networks: tuple[str, ...] = ()
    """Recipes whose networks are trained too, in the place of the recipe's own: all else is the recipe's."""
    narrow: bool = False
    """Take a quarter of the widths of these networks, as --quick does of the recipe's own."""

    holdout = 5000
    extending = ("runs", "doublings", "norms", "networks")
    quick: ClassVar[Mapping[str, Any]] = {"narrow": True}

    def _check(self) -> None:
        super()._check()
        self._require(
            "init_scales", len({f"{scale:g}" for scale in self.init_scales}) == len(self.init_scales) > 0, _SCALES
        )
        for name in ("norms", "networks"):
            values = getattr(self, name)
            self._require(name, len({*values}) == len(values), "each of them once")
        self._require("norms", self.norms, "true, false or both")
        for name, recipe in self.recipes.items():
            same = [other for other, each in self.recipes.items() if each == recipe and other != name]
            if name and same:
                raise UserError(f"networks has {name}, with the network of {same[0] or 'the recipe'}; allowed: others")
            if not _has_switch(recipe) and self.norms != (True,):
                allowed = f"one that has, as {Recipe().network.kind}, or --norms true alone"
                said = f"the network {recipe.network.kind} has no batch norm that can be left out"
                raise UserError(f"{said}; allowed: {allowed}")

    @property
    def rates(self) -> list[float]:
        """The rates, each double the one before."""
        first = self.first_rate or self.recipe.optimizer.lr / 32
        return [first * 2**number for number in range(self.doublings + 1)]

    @property
    def recipes(self) -> dict[str, Recipe]:
        """The recipe, by an empty name, and with each further network by the name of that."""
        others = {name: get_recipe(name).network for name in self.networks}
        changed = {name: narrow(network) if self.narrow else network for name, network in others.items()}
        return {"": self.recipe} | {
            name: dataclasses.replace(self.recipe, network=network) for name, network in changed.items()
        }

    @property
    def starts(self) -> dict[str, tuple[Recipe, float]]:
        """`starts[name]`: the recipe at its own rate, and the scale of its initial weights."""
        starts = {}
        for name, recipe in self.recipes.items():
            for norm, word in ((True, "norm"), (False, "no-norm")):
                for scale in self.init_scales if norm in self.norms else ():
                    changes = {"network.norm": norm} if _has_switch(recipe) else {}
                    start = "-".join([*[in_file_name(name)] * bool(name), word, f"x{scale:g}"])
                    starts[start] = change(recipe, changes), scale
        return starts

    def trained_recipes(self) -> dict[str, Recipe]:
        return {name: recipe for name, (recipe, _) in self.starts.items()}

    @property
    def subject(self) -> str:
        return " and ".join([label(self.recipe), *(f"the network of {name}" for name in self.networks)])

    def jobs(self, dataset: Dataset) -> list[Job]:
        jobs = []
        for seed in self.seeds:
            for name, (recipe, scale) in self.starts.items():
                before: str | None = None
                for rate in self.rates:
                    start = ColdStart(scale=scale)
                    job = Job(f"{name}/{rate:g}", seed, change(recipe, {"optimizer.lr": rate}), start=start)
                    if before is None:
                        job = dataclasses.replace(job, diagnose=(CURVATURE,))
                    else:  # not trained where the one before diverged
                        job = dataclasses.replace(job, after=before)
                    jobs.append(job)
                    before = job.key
        return jobs

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> StableRates:
        return StableRates(self, settings, outcomes)


def _has_switch(recipe: Recipe) -> bool:
    """Return True where the field `norm` of a network says whether it has batch norm, not which norm."""
    return isinstance(getattr(recipe.network, "norm", None), bool)


@dataclass(frozen=True)
class StableRates(SeparateArms):
    """The result of `StableRate`."""

    experiment: StableRate
    curvatures: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
    """`curvatures[start]`: the largest eigenvalue of the Hessian before the first step, in the order of the seeds; None
    where it is not finite, or the run failed before it was measured."""

    def add(self, job: Job, outcome: Outcome, store: Store) -> None:
        super().add(job, outcome, store)
        if job.diagnose:
            found = store.found(job.key, CURVATURE)
            value = math.nan if found is None else float(found.eigenvalue[0])  # pyright: ignore[reportAttributeAccessIssue]
            self.curvatures.setdefault(job.arm.rpartition("/")[0], []).append(value if math.isfinite(value) else None)

    def stable(self, start: str) -> list[float]:
        """Return the highest stable rate, by seed; 0 where none was."""
        by_rate = [(rate, self.outcomes[f"{start}/{rate:g}"]) for rate in self.experiment.rates]
        return [
            max((rate for rate, outcomes in by_rate if _is_stable(outcomes[place])), default=0.0)
            for place in range(self.n)
        ]

    def losses(self, start: str) -> dict[float, Summary]:
        """Return the log-loss at the end by rate, of the rates at which no run diverged."""
        found = {}
        for rate in self.experiment.rates:
            arm = f"{start}/{rate:g}"
            if not self.failed_of(arm):
                found[rate] = summarize([known(each.loss) for each in self.ended(arm)])
        return found

    def best(self, start: str) -> float | None:
        """Return the rate with the lowest mean log-loss, of those at which no run diverged; None: all of them did."""
        losses = self.losses(start)
        return min(losses, key=lambda rate: losses[rate].mean) if losses else None

    def to_dict(self) -> dict[str, Any]:
        starts = {
            name: {
                "stable_rates": self.stable(name),
                "best_rate": self.best(name),
                "losses": {f"{rate:g}": dataclasses.asdict(each) for rate, each in self.losses(name).items()},
                "curvatures": self.curvatures.get(name, [])[: self.n],
            }
            for name in self.experiment.starts
        }
        return {**self.settings, "seeds": self.seeds, "rates": self.experiment.rates, "starts": starts, **self.counts}

    def tables(self) -> list[Table]:
        rows = []
        for name in self.experiment.starts:
            stable, best = self.stable(name), self.best(name)
            rates = f"{min(stable):g}" if len({*stable}) == 1 else f"{min(stable):g} to {max(stable):g}"
            lowest = ("-", "-") if best is None else (f"{best:g}", nats(self.losses(name)[best]))
            measured = [value for value in self.curvatures.get(name, [])[: self.n] if value is not None]
            curvature = summarize(measured) if measured else None
            limit = f"{2 / curvature.mean:.3g}" if curvature and curvature.mean > 0 else "-"
            rows.append((name, rates, *lowest, _shown(curvature) if curvature else "-", limit))
        head = ("start", "highest stable rate", "best rate", "log-loss", "curvature", "2 / curvature")
        return [Table(f"Rates, doubled until a training diverges ({counted(self.n)})", head, tuple(rows))]

    def remarks(self) -> list[str]:
        said, top = [], [name for name in self.experiment.starts if self.experiment.rates[-1] in self.stable(name)]
        if top:
            highest = f"{self.experiment.rates[-1]:g}"
            said.append(f"the highest rate, {highest}, is stable with {', '.join(top)}: more --doublings")
        unknown = [(arm, each) for arm, each in self.failed if not isinstance(each, Diverged)]
        if unknown:
            arm, first = unknown[0]
            runs = f"{len(unknown)} run{'s' * (len(unknown) > 1)} failed and did not diverge"
            said.append(f"{runs}, which says nothing of their rates ({arm}: {first.reason})")
        return said

    def figures(self) -> dict[str, Figure]:
        lines = []
        for color, name in enumerate(self.experiment.starts):
            losses = self.losses(name)
            means = [losses[rate].mean if rate in losses else None for rate in self.experiment.rates]
            lines.append(Line(self.experiment.rates, means, color, name))
        return {"loss": Figure("learning rate", f"{self.tested} log-loss (nats)", tuple(lines), log=True)}


def _is_stable(outcome: Outcome) -> bool:
    """Return True for a training that ended better than guessing does."""
    return not isinstance(outcome, Failed) and known(outcome.loss) < math.log(len(outcome.dataset.classes))


def _shown(summary: Summary) -> str:
    half = "" if summary.interval is None else f" ± {summary.interval[1] - summary.mean:.3g}"
    return f"{summary.mean:.3g}{half}"
