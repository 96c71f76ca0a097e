"""Random, warm and shrink-perturbed starts for every network and optimizer (Ash and Adams 2020, table 1)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.errors import UserError
from fastcifar.experiments.experiment import Job, experiment
from fastcifar.experiments.named.half import CLASS_COLUMNS, FIRST, Half, HalfResult
from fastcifar.experiments.result import Outcome, Result
from fastcifar.experiments.warm_starts import COLD, SHRINK, WARM, WarmStarts, doubts
from fastcifar.output import short_name
from fastcifar.recipes import OPTIMIZERS, Recipe, change, narrow, network_of
from fastcifar.recipes.declare import setting
from fastcifar.report import Figure, Line, counted, percent, points, summarize
from fastcifar.report import Table as TextTable

if TYPE_CHECKING:
    from fastcifar.data import Dataset

PAPER = {
    ("cifar10", "resnet18", "sgd"): (0.562, 0.517),
    ("cifar10", "resnet18", "adam"): (0.780, 0.744),
    ("cifar10", "mlp", "sgd"): (0.390, 0.374),
    ("cifar10", "mlp", "adam"): (0.394, 0.361),
    ("cifar100", "resnet18", "sgd"): (0.182, 0.155),
    ("cifar100", "resnet18", "adam"): (0.414, 0.350),
    ("cifar100", "mlp", "sgd"): (0.103, 0.094),
    ("cifar100", "mlp", "adam"): (0.116, 0.099),
    ("svhn", "resnet18", "sgd"): (0.894, 0.875),
    ("svhn", "resnet18", "adam"): (0.936, 0.935),
    ("svhn", "mlp", "sgd"): (0.765, 0.754),
    ("svhn", "mlp", "adam"): (0.767, 0.694),
}
"""Accuracies of the paper's table 1 by dataset, network and optimizer: after a random and after a warm start."""


@experiment("table", group="warm-start")
@dataclass(frozen=True)
class Table(WarmStarts["TableResult"]):
    """Do `half` for every network and optimizer, beside the paper's accuracies.

    A network that is not the recipe's is as the first named recipe has it that uses one. Another optimizer takes over
    the fields that it shares with the recipe's.
    """

    networks: tuple[str, ...] = ("resnet18", "mlp")
    """Kinds of network."""
    optimizers: tuple[str, ...] = ("sgd", "Adam")
    """Kinds of optimizer, each with a rate of its own where one is given: sgd=0.03 Adam=0.001."""
    narrow: bool = False
    """Take networks that are not the recipe's at a quarter of their width."""
    fraction: float = setting(0.5, above=0, below=1)
    """Share of the images in the first round."""
    until_train_accuracy: float | None = setting(0.99, above=0, at_most=1)
    """End a run after the first epoch with this running training accuracy, a fraction; --epochs are then the most."""

    holdout = "third"
    extending = ("seed", "runs", "narrow")
    quick: ClassVar[Mapping[str, Any]] = {"train_size": 1000, "optimizers": ("sgd=0.03", "Adam"), "narrow": True}

    def _check(self) -> None:
        super()._check()
        for name, values, different in (
            ("networks", self.networks, set(self.networks)),
            ("optimizers", self.optimizers, self.rates),
        ):
            if not values or len(different) < len(values):
                raise UserError(f"{name} are {' '.join(values) or 'none'}; allowed: one or more, all different")
        _ = self.cells  # refuses combinations that do not go together

    @property
    def rates(self) -> dict[str, float | None]:
        """`rates[optimizer]`; None where it has none of its own."""
        rates: dict[str, float | None] = {}
        for word in self.optimizers:
            optimizer, equals, rate = word.partition("=")
            try:
                rates[optimizer] = float(rate) if equals else None
            except ValueError:
                allowed = "a name, or a name and a rate, as in Adam=0.001"
                raise UserError(f"optimizers has {word!r}; allowed: {allowed}") from None
        return rates

    @cached_property
    def cells(self) -> dict[tuple[str, str], Recipe]:
        """`cells[network, optimizer]`: the recipe of a cell of the table."""
        cells = {}
        for network in self.networks:
            for optimizer, rate in self.rates.items():
                where = f"networks {network}, optimizers {optimizer}"
                is_own = network == self.recipe.network.kind
                change(self.recipe, {"network": network}, where)  # refuses an unknown one
                config = self.recipe.network if is_own else network_of(self.recipe, network)
                config = narrow(config) if self.narrow and not is_own else config
                changes = {"network": config, "optimizer": self._optimizer(optimizer, rate)}
                cells[network, optimizer] = change(self.recipe, changes, where)
        return cells

    def _optimizer(self, kind: str, rate: float | None) -> dict[str, Any]:
        """Return the section of an optimizer of this kind, at this rate if there is one, else at the recipe's."""
        if kind not in OPTIMIZERS:
            return {"kind": kind}
        names = {field.name for field in dataclasses.fields(OPTIMIZERS[kind])}
        kept = {name: value for name, value in dataclasses.asdict(self.recipe.optimizer).items() if name in names}
        return {**kept, "kind": kind, "lr": self.recipe.optimizer.lr if rate is None else rate}

    def settings(self) -> dict[str, Any]:
        networks = {recipe.network.kind: dataclasses.asdict(recipe.network) for recipe in self.cells.values()}
        return {**super().settings(), "networks": networks, "optimizers": self.rates}

    def _half(self, recipe: Recipe) -> Half:
        """Return the experiment of one cell."""
        names = {field.name for field in dataclasses.fields(Half)}
        same = {name: getattr(self, name) for name in names & {field.name for field in dataclasses.fields(self)}}
        return Half(**{**same, "recipe": recipe})

    def jobs(self, dataset: Dataset) -> list[Job]:
        jobs = []
        for cell, recipe in self.cells.items():
            for job in self._half(recipe).jobs(dataset):
                after = job.after and _arm(cell, job.after)
                jobs.append(dataclasses.replace(job, arm=_arm(cell, job.arm), after=after))
        return jobs

    def result(self, settings: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> TableResult:
        return TableResult(self, settings, outcomes)

    def half_result(self, cell: tuple[str, str], result: TableResult) -> HalfResult:
        """Return what the runs of one cell say."""
        half = self._half(self.cells[cell])
        settings = {**result.settings, "recipe": dataclasses.asdict(half.recipe)}
        return half.result(settings, {arm: result.outcomes[_arm(cell, arm)] for arm in (FIRST, WARM, COLD, SHRINK)})


def _arm(cell: tuple[str, str], arm: str) -> str:
    return f"{cell[0]}-{cell[1]}/{arm}"


@dataclass(frozen=True)
class TableResult(Result):
    """The result of `Table`."""

    experiment: Table

    @property
    def cells(self) -> dict[tuple[str, str], HalfResult]:
        """`cells[network, optimizer]`, as in ("resnet18", "Adam"), each with the seeds in which none of its runs
        failed; without those that have none."""
        cells = {cell: self.experiment.half_result(cell, self) for cell in self.experiment.cells}
        return {cell: result for cell, result in cells.items() if result.n}

    @property
    def n(self) -> int:
        return max((result.n for result in self.cells.values()), default=0)

    def paper(self, network: str, optimizer: str) -> tuple[float, float] | None:
        """Return the paper's accuracies, cold and warm; None where it has not this combination."""
        return PAPER.get((self.settings["dataset"], network, optimizer.lower()))

    def to_dict(self) -> dict[str, Any]:
        cells = []
        for (network, optimizer), result in self.cells.items():
            found = result.to_dict()
            cells.append(
                {
                    "network": network,
                    "optimizer": optimizer,
                    "seeds": result.seeds,
                    **{key: found[key] for key in ("arms", "differences", "recovered")},
                    "paper": self.paper(network, optimizer),
                }
            )
        seeds = sorted({seed for result in self.cells.values() for seed in result.seeds})
        return {**self.settings, "seeds": seeds, "cells": cells, **self.counts}

    def notebook(self) -> dict[str, Any]:
        """Return the results in the form of the notebook's experiment 2: accuracies in percent after a random and
        after a warm start, and their difference; means over the seeds."""
        found = {}
        for (network, optimizer), result in self.cells.items():
            cold, warm = (100 * summarize(result.test_accuracies(arm)).mean for arm in (COLD, WARM))
            name = "-".join((network.removesuffix("18"), optimizer.lower(), short_name(self.settings["dataset"])))
            found[name] = [cold, warm, cold - warm]
        return found

    def tables(self) -> list[TextTable]:
        rows = []
        for (network, optimizer), result in self.cells.items():
            paper = self.paper(network, optimizer)
            rows.append(
                (
                    f"{network} {optimizer}" + f" (n={result.n})" * (result.n < self.n),
                    *(percent(summarize(result.test_accuracies(arm))) for arm in (COLD, WARM, SHRINK)),
                    points(result.test_difference(COLD, WARM)),
                    points(result.train_difference(COLD, WARM)),
                    f"{100 * paper[0]:.1f} / {100 * paper[1]:.1f}" if paper else "-",
                )
            )
        columns = ("", "random", "warm", "shrink-perturb", "random - warm", "the same, train", "paper: random / warm")
        classes = [row for cell, found in self.cells.items() for row in found.class_rows(f"{' '.join(cell)}: ")]
        title = f"Macro means over the classes, {self.tested} images ({counted(self.n)})"
        return [
            TextTable(f"{self.tested.capitalize()} accuracy ({counted(self.n)})", columns, tuple(rows)),
            TextTable(title, CLASS_COLUMNS, tuple(classes)),
        ]

    def remarks(self) -> list[str]:
        gaps = {" ".join(cell): result.test_difference(COLD, WARM) for cell, result in self.cells.items()}
        lines = doubts(gaps)
        if abs(self.settings["train_size"] - 2 * self.settings["holdout"]) > 2:
            lines.append(
                "not the paper's two thirds of the images to fit on and one third to test on: compare differences only"
            )
        return [*lines, *super().remarks()]

    def files(self) -> dict[str, str]:
        return {**super().files(), "runs.json": json.dumps(self.notebook()) + "\n"}

    def figures(self) -> dict[str, Figure]:
        """Return test accuracies with their intervals."""
        lines = []
        for place, arm in enumerate((COLD, WARM, SHRINK)):
            percents = [[100 * share for share in result.test_accuracies(arm)] for result in self.cells.values()]
            found = list(map(summarize, percents))
            lines.append(
                Line(
                    [number + 0.12 * (place - 1) for number in range(len(found))],
                    [summary.mean for summary in found],
                    (1, 0, 2)[place],
                    arm,
                    intervals=[summary.interval for summary in found],
                    marks=True,
                )
            )
        names = tuple("\n".join(cell) + f"\nn={found.n}" * (found.n < self.n) for cell, found in self.cells.items())
        return {"accuracy": Figure("network and optimizer", f"{self.tested} accuracy (%)", tuple(lines), ticks=names)}
