"""Random, warm and shrink-perturbed starts for every network and optimizer (Ash and Adams 2020, table 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fastcifar.data import Dataset
from fastcifar.errors import UserError
from fastcifar.experiments.half import COLD, SHRINK, WARM, HalfResult, half_images, train_half
from fastcifar.experiments.runs import OnProgress, Runs
from fastcifar.experiments.settings import check_fraction, check_seeds, describe, kept_in
from fastcifar.experiments.store import Store
from fastcifar.recipes import OPTIMIZERS, NetworkConfig, Recipe, change, network_of
from fastcifar.report import Figure, Line, Table, counted, percent, points, summarize

PAPER = {
    ("cifar10", "resnet18", "sgd"): (0.562, 0.517),
    ("cifar10", "resnet18", "adam"): (0.780, 0.744),
    ("cifar10", "mlp", "sgd"): (0.390, 0.374),
    ("cifar10", "mlp", "adam"): (0.394, 0.361),
}
"""What the paper's table 1 says of a dataset, network and optimizer: accuracy after a random and after a warm start."""
_OPTIMIZERS: Mapping[str, float | None] = MappingProxyType({"sgd": None, "Adam": None})


@dataclass(frozen=True)
class TableResult:
    """What `table` found."""

    settings: dict[str, Any]
    seeds: tuple[int, ...]
    cells: dict[tuple[str, str], HalfResult]
    """By network and optimizer, as in ("resnet18", "Adam")."""

    def paper(self, network: str, optimizer: str) -> tuple[float, float] | None:
        """The paper's accuracies, cold and warm, where it has this combination."""
        return PAPER.get((self.settings["dataset"], network, optimizer.lower()))

    def to_dict(self) -> dict[str, Any]:
        """All of it as data, ready for JSON."""
        cells = []
        for (network, optimizer), result in self.cells.items():
            found = result.to_dict()
            cells.append(
                {
                    "network": network,
                    "optimizer": optimizer,
                    **{key: found[key] for key in ("arms", "differences", "recovered")},
                    "paper": self.paper(network, optimizer),
                }
            )
        return {**self.settings, "seeds": list(self.seeds), "cells": cells}

    def notebook(self) -> dict[str, Any]:
        """In the form of the results of the notebook's experiment 2: accuracies in percent after a random and after a
        warm start, and their difference; means over the seeds."""
        found = {}
        for (network, optimizer), result in self.cells.items():
            cold, warm = (100 * summarize(result.test_accuracies(arm)).mean for arm in (COLD, WARM))
            name = "-".join((network.removesuffix("18"), optimizer.lower(), self.settings["dataset"]))
            found[name] = [cold, warm, cold - warm]
        return found

    def tables(self) -> list[Table]:
        """Test accuracies beside the paper's."""
        rows = []
        for (network, optimizer), result in self.cells.items():
            paper = self.paper(network, optimizer)
            rows.append(
                (
                    f"{network} {optimizer}",
                    *(percent(summarize(result.test_accuracies(arm))) for arm in (COLD, WARM, SHRINK)),
                    points(result.test_difference(COLD, WARM)),
                    points(result.train_difference(COLD, WARM)),
                    f"{100 * paper[0]:.1f} / {100 * paper[1]:.1f}" if paper else "-",
                )
            )
        columns = ("", "random", "warm", "shrink-perturb", "random - warm", "the same, train", "paper: random / warm")
        return [Table(f"Test accuracy ({counted(len(self.seeds))})", columns, tuple(rows))]

    def remarks(self) -> list[str]:
        """What a reader of the table must know."""
        if abs(self.settings["train_size"] - 2 * self.settings["holdout"]) <= 2:
            return []
        return ["not the paper's two thirds of the images to fit on and one third to test on: compare differences only"]

    def figures(self) -> dict[str, Figure]:
        """Test accuracies with their intervals."""
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
        names = tuple(f"{network}\n{optimizer}" for network, optimizer in self.cells)
        return {"accuracy": Figure("network and optimizer", "test accuracy (%)", tuple(lines), ticks=names)}


def table(
    recipe: Recipe,
    dataset: Dataset,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    *,
    networks: Sequence[str | NetworkConfig] = ("resnet18", "mlp"),
    optimizers: Mapping[str, float | None] = _OPTIMIZERS,
    fraction: float = 0.5,
    subset_seed: int = 0,
    shrink: float = 0.4,
    perturb: float = 0.1,
    until_train_accuracy: float | None = 0.99,
    device: str | torch.device = "auto",
    eval_every: int = 0,
    on_progress: OnProgress | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> TableResult:
    """The experiment `half` for `recipe` with each of `networks` (kinds, or configurations) and each of `optimizers`,
    kinds with their rate (None: the recipe's).

    A kind of network that is not the recipe's is as the first named recipe has it that uses one, such as
    warmstart-resnet18. Another kind of optimizer takes over what fields it shares with the recipe's. The other
    arguments, and what is raised, are those of `half`.
    """
    configs = [network_of(recipe, each) if isinstance(each, str) else each for each in networks]
    by_kind = {config.kind: config for config in configs}
    for name, values, different in (("networks", networks, by_kind), ("optimizers", optimizers, optimizers)):
        if not values or len(different) < len(values):
            raise UserError(f"{name} are {list(values)}; allowed: one or more, all different")
    check_seeds(seeds)
    check_fraction(fraction, recipe, dataset)
    settings = {
        **describe("table", recipe, dataset, subset_seed, shrink, perturb, until_train_accuracy, device, eval_every),
        "fraction": fraction,
        "networks": {kind: dataclasses.asdict(config) for kind, config in by_kind.items()},
        "optimizers": dict(optimizers),
    }
    recipes = {
        (kind, name): change(recipe, {"network": network, "optimizer": _optimizer(recipe, name, lr)})
        for kind, network in by_kind.items()
        for name, lr in optimizers.items()
    }
    prefixes = {cell: f"{cell[0]}-{cell[1]}/" for cell in recipes}
    images: dict[str, float] = {}
    for cell, cell_recipe in recipes.items():
        images |= half_images(prefixes[cell], cell_recipe, dataset, seeds, fraction)
    cells = {}
    with kept_in(folder) as place:
        runs = Runs(Store(place, settings), images, on_progress, on_step, eval_every)
        for cell, cell_recipe in recipes.items():
            records = train_half(runs, prefixes[cell], cell_recipe, dataset, seeds, settings, device)
            cell_settings = {**settings, "recipe": dataclasses.asdict(cell_recipe)}
            cells[cell] = HalfResult(cell_settings, tuple(seeds), records)
    return TableResult(settings, tuple(seeds), cells)


def _optimizer(recipe: Recipe, kind: str, lr: float | None) -> dict[str, Any]:
    """The section of an optimizer of this kind, at this rate if there is one, else as the recipe's has it."""
    names = {field.name for field in dataclasses.fields(OPTIMIZERS[kind])}
    kept = {name: value for name, value in dataclasses.asdict(recipe.optimizer).items() if name in names}
    return {**kept, "kind": kind, "lr": lr or recipe.optimizer.lr}
