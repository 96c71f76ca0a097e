"""Ensembles: members trained one by one, or at once on one loss, and what is gained by taking them together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Experiment, Job, experiment
from fastcifar.experiments.result import Failed, Outcome, Result, known, paired
from fastcifar.recipes import EnsembleConfig, Recipe
from fastcifar.recipes.declare import setting
from fastcifar.report import Figure, Line, Summary, Table, counted, percent, points, summarize
from fastcifar.start import ColdStart

if TYPE_CHECKING:
    import numpy as np

    from fastcifar.data import Dataset
    from fastcifar.experiments.store import Store
    from fastcifar.report.combined import Combined
    from fastcifar.report.ensembles import MeanOf
    from fastcifar.training import RunRecord

NONE = "none"
"""The members are trained one by one."""
_LISTED = 10
"""Up to so many ensembles of each kind have a row each."""


@experiment("ensemble")
@dataclass(frozen=True)
class Ensemble(Experiment["Ensembles"]):
    """Train networks, one by one or at once, and take them together, or take saved RUNs together.

    With words that name saved runs, of any recipes, nothing is trained: fastcifar ensemble RUN RUN --help says more.
    Else it says for each kind of training, and for the mean of probabilities and of logits, what the ensemble gains in
    accuracy and log-loss over the mean of its members, and on how many images its members' answers differ. Member m of
    ensemble s begins with the same weights in every kind, and with its own order sees the same batches: those of a run
    of seed s * members + m. docs/ensembles.md says what each loss does to the learning rates.
    """

    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    members: int = setting(4, at_least=2, at_most=1000, unit="networks")
    """Networks of an ensemble."""
    joint: tuple[Literal["none", "mean", "sum", "logits", "shared"], ...] = (NONE,)
    """How the members are trained, one kind or several to compare. none: one by one. All others at once, on the mean
    of their losses, on the sum, on the loss of the mean of their logits (whose order is always shared), or shared: on
    the mean of the losses of members that share all their weights, the pitfall that is one network."""
    order: Literal["own", "shared"] = "own"
    """own: each member has an order and changes of the images of its own. shared: the same for all of an ensemble."""
    runs: int = setting(2, at_least=1, at_most=100_000)
    """Ensembles of each kind."""
    eval_every: int = setting(0, at_least=0, unit="epochs")
    """Epochs between evaluations, for the figure of test accuracies; 0: only at the end."""
    keep_weights: bool = False
    """Keep the weights of every run, for fastcifar eval; predictions are kept in any case."""

    of_runs: ClassVar[str] = "fastcifar.cli.ensemble"

    def _check(self) -> None:
        super()._check()
        usual, given = EnsembleConfig(), self.recipe.ensemble
        for name, what in (
            ("members", "how many are trained"),
            ("joint", "on which loss"),
            ("order", "in which order"),
        ):
            if (value := getattr(given, name)) != getattr(usual, name):
                allowed = f"--{name} {value}, which says {what}"
                raise UserError(f"--ensemble.{name} is {value}; allowed: {allowed}")
        kinds = dict.fromkeys(self.joint)
        self._require("joint", kinds and len(kinds) == len(self.joint), "one kind or more, each once")

    def config(self, kind: str) -> EnsembleConfig:
        """Return the section `ensemble` of the runs of a `kind` of training; of members that are trained one by one,
        that of no run, which names their seeds."""
        if kind == NONE:
            return EnsembleConfig(self.members, "sum", self.order)
        return EnsembleConfig(self.members, kind, "shared" if kind == "logits" else self.order)  # pyright: ignore[reportArgumentType]

    def arms(self, kind: str) -> list[str]:
        """Return the arms of a `kind` of training: one, or one for each member."""
        return [f"{NONE}/member-{member}" for member in range(self.members)] if kind == NONE else [kind]

    def jobs(self, dataset: Dataset) -> list[Job]:
        keep = {"eval_every": self.eval_every, "keep_predictions": True, "keep_weights": self.keep_weights}
        jobs = []
        for seed in self.seeds:
            for kind in self.joint:
                config = self.config(kind)
                if kind != NONE:
                    jobs.append(Job(kind, seed, dataclasses.replace(self.recipe, ensemble=config), **keep))
                    continue
                orders, weights = config.order_seeds(seed), config.seeds(seed)
                for member, arm in enumerate(self.arms(kind)):
                    order = orders[member % len(orders)]
                    start = ColdStart() if order == weights[member] else ColdStart(weights[member])
                    jobs.append(Job(arm, seed, self.recipe, own_seed=order, start=start, **keep))
        return jobs

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> Ensembles:
        return Ensembles(self, settings, outcomes)


@dataclass(frozen=True)
class Ensembles(Result):
    """The result of `Ensemble`. `predictions[arm]` are the logits of each run's members `[members, N, classes]` and the
    labels, with the recipe's test-time augmentation."""

    predictions: dict[str, list[tuple[np.ndarray, np.ndarray] | None]] = dataclasses.field(default_factory=dict)
    _plain: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    """By seed the sum of the logits without test-time augmentation of members that were trained one by one: what those
    trained at once evaluate in each epoch."""
    _found: dict[tuple[str, int, str], Combined] = dataclasses.field(default_factory=dict)
    _churn: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)

    experiment: Ensemble

    def add(self, job: Job, outcome: Outcome, store: Store) -> None:
        from fastcifar.training.predictions import read_file

        super().add(job, outcome, store)
        kept = None if isinstance(outcome, Failed) else read_file(store.predictions(job.key))
        if kept and job.arm in self.experiment.arms(NONE):
            plain, _ = read_file(store.predictions(job.key), tta=False)
            self._plain[job.seed] = self._plain.get(job.seed, 0.0) + plain[0].astype("float64")
        self.predictions.setdefault(job.arm, []).append(kept)

    def members(self, kind: str, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits `[members, N, classes]` and the labels of an ensemble; `place`: of its outcomes."""
        import numpy as np

        found = [kept for arm in self.experiment.arms(kind) if (kept := self.predictions[arm][place]) is not None]
        return np.concatenate([logits for logits, _ in found]), found[0][1]

    def combined(self, kind: str, mean_of: MeanOf = "probabilities") -> list[Combined]:
        """Return the scores of each ensemble of a `kind` of training, in the order of `seeds`."""
        from fastcifar.report.combined import combine

        for place in self._whole:
            if (kind, place, mean_of) not in self._found:
                self._found[kind, place, mean_of] = combine(*self.members(kind, place), mean_of)
        return [self._found[kind, place, mean_of] for place in self._whole]

    def scores(self, kind: str, mean_of: MeanOf = "probabilities") -> dict[str, Summary]:
        """Return the summaries of `combined` over ensembles: intervals are for other ensembles and the same images."""
        from fastcifar.report.combined import SCORES

        found = self.combined(kind, mean_of)
        return {name: summarize([getattr(each, name).mean for each in found]) for name in SCORES}

    def churn(self, kind: str) -> Summary | None:
        """Return the share of images on which two members' answers differ, a mean over the pairs of each ensemble; None
        where members are one network."""
        from fastcifar.report.agreement import churn

        if kind == "shared":
            return None
        for place in self._whole:
            if (kind, place) not in self._churn:  # a result is written again after every ensemble
                logits, _ = self.members(kind, place)
                self._churn[kind, place] = churn(logits.argmax(2), logits.shape[2]).mean
        return summarize([self._churn[kind, place] for place in self._whole])

    def difference(self, kind: str, mean_of: MeanOf = "probabilities") -> Summary:
        """Return the accuracy of the ensembles of a `kind` less that of the first kind's, ensemble by ensemble."""
        theirs, ours = (self.combined(each, mean_of) for each in (self.experiment.joint[0], kind))
        return paired([each.accuracy.mean for each in ours], [each.accuracy.mean for each in theirs])

    def to_dict(self) -> dict[str, Any]:
        from fastcifar.report.ensembles import MEANS

        kinds = {}
        for kind in self.experiment.joint:
            means = {mean_of: self._means(kind, mean_of) for mean_of in MEANS}
            churn = self.churn(kind)
            kinds[kind] = {**means, "churn": churn and dataclasses.asdict(churn)}
        return {**super().to_dict(), "kinds": kinds, "rates": self._rates()}

    def _means(self, kind: str, mean_of: MeanOf) -> dict[str, Any]:
        over = {name: dataclasses.asdict(found) for name, found in self.scores(kind, mean_of).items()}
        each = [dataclasses.asdict(found) for found in self.combined(kind, mean_of)]
        return {"over_ensembles": over, "ensembles": each}

    def tables(self) -> list[Table]:
        from fastcifar.report.combined import HEADS, cells
        from fastcifar.report.ensembles import MEANS

        kinds, first = self.experiment.joint, self.experiment.joint[0]
        rows, each, differences = [], [], []
        for kind in kinds:
            churn = self.churn(kind)
            differ = "-" if churn is None else percent(churn)
            for mean_of in MEANS:
                name = f"{kind}, mean {mean_of}"
                rows.append((name, *cells(*self.scores(kind, mean_of).values()), differ))
                found = zip(self.seeds, self.combined(kind, mean_of), strict=True)
                each += [(f"{name}, seed {seed}", *scores.cells) for seed, scores in found]
                if kind != first:
                    differences.append((name, points(self.difference(kind, mean_of))))
        n, heads = counted(self.n, "± 95% interval over ensembles"), ("joint", *HEADS)
        tables = [Table(f"{self.experiment.members} members ({n})", (*heads, "members differ"), tuple(rows))]
        if differences:
            title = f"Accuracy of the ensembles less that of {first} ({n})"
            tables.append(Table(title, ("joint", "points"), tuple(differences)))
        if self.n <= _LISTED:
            tables.append(Table("Each ensemble (± 95% interval over images)", heads, tuple(each)))
        return tables

    def remarks(self) -> list[str]:
        trap = "joint shared: the members are one network, so that nothing is gained; see docs/ensembles.md"
        return [*self._rates(), *[trap] * ("shared" in self.experiment.joint), *super().remarks()]

    def _rates(self) -> list[str]:
        configs = [self.experiment.config(kind) for kind in self.experiment.joint]
        return [said for each in configs if (said := each.rates(self.experiment.recipe.optimizer))]

    def figures(self) -> dict[str, Figure]:
        """Return training and test accuracy over the epochs: of single networks, and of those trained at once. Epochs
        are evaluated without test-time augmentation; so is the ensemble of single networks, at the end."""
        figures = {}
        for name, what in (("train", "training accuracy (%)"), ("test", f"plain {self.tested} accuracy (%)")):
            lines = []
            for color, kind in enumerate(self.experiment.joint):
                records = [record for arm in self.experiment.arms(kind) for record in self.records[arm]]
                mean = "members' mean" if name == "train" and kind != "logits" else "mean logits"
                label = "one network" if kind == NONE else f"{mean} of {self.experiment.members}, joint {kind}"
                lines.append(_curve(records, f"{name}_accuracy", color, f"{label}, n={len(records)}"))
                if kind == NONE and name == "test":
                    lines.append(self._end(max(row.epoch for record in records for row in record.history), color))
            figures[f"{name}-accuracy"] = Figure("epoch", what, tuple(lines))
        return figures

    def _end(self, epoch: int, color: int) -> Line:
        """Return the accuracy of the mean logits of members that were trained one by one, at their last epoch."""
        accuracies = []
        for place, seed in zip(self._whole, self.seeds, strict=True):
            _, labels = self.members(NONE, place)
            right = self._plain[seed].argmax(1) == labels
            accuracies.append(100 * float(right[labels >= 0].mean()))
        found = summarize(accuracies)
        intervals = [found.interval if found.n > 2 else None]
        label = f"mean logits of {self.experiment.members}, joint {NONE}, n={self.n}"
        return Line([epoch], [found.mean], color, label, intervals=intervals, marks=True)


def _curve(records: Sequence[RunRecord], column: str, color: int, label: str) -> Line:
    """Return the mean of a column of the histories, in percent, at the epochs that have one, and its interval; not that
    of two runs, which would leave the curves no room."""
    rows = [[getattr(row, column) for row in record.history if row.epoch] for record in records]
    epochs = [epoch for epoch, values in enumerate(zip(*rows, strict=False), start=1) if None not in values]
    found = [summarize([100 * known(row[epoch - 1]) for row in rows]) for epoch in epochs]
    intervals = [each.interval if each.n > 2 else None for each in found]
    return Line(epochs, [each.mean for each in found], color, label, intervals=intervals)
