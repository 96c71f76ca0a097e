"""What the experiments share: the checks and the record of what they were asked, and what they say of their numbers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastcifar.data import Dataset
from fastcifar.errors import UserError
from fastcifar.experiments.runs import SEEDS
from fastcifar.recipes import Recipe
from fastcifar.report import Summary, summarize
from fastcifar.start import check_factors
from fastcifar.training import resolve_device


def describe(
    experiment: str,
    recipe: Recipe,
    dataset: Dataset,
    subset_seed: int,
    shrink: float,
    perturb: float,
    until_train_accuracy: float | None,
    device: str | torch.device,
    eval_every: int,
) -> dict[str, Any]:
    """What decides the runs of an experiment, ready for JSON. Raises UserError for a value out of range."""
    check_factors(shrink, perturb)
    if until_train_accuracy is not None and not 0 < until_train_accuracy <= 1:
        raise UserError(f"until_train_accuracy is {until_train_accuracy}; allowed: above 0, up to 1")
    if eval_every < 0:
        raise UserError(f"eval_every is {eval_every}; allowed: 0 (only at the end) or a number of epochs")
    if not 0 <= subset_seed < 2**32:
        raise UserError(f"subset_seed is {subset_seed}; allowed: 0 up to 2**32 - 1")
    return {
        "experiment": experiment,
        "recipe": dataclasses.asdict(recipe),
        **describe_data(dataset, device),
        "subset_seed": subset_seed,
        "shrink": shrink,
        "perturb": perturb,
        "until_train_accuracy": until_train_accuracy,
        "eval_every": eval_every,
    }


def describe_data(dataset: Dataset, device: str | torch.device) -> dict[str, Any]:
    """What of the data and the device decides the runs, ready for JSON. Raises UserError for a test split without
    labels, of which an experiment has nothing to say."""
    if (dataset.test.labels < 0).all():
        raise UserError(f"no test image of {dataset.name} has a label; allowed: an experiment on labeled ones")
    return {
        "dataset": dataset.name,
        "sha256": dataset.sha256,
        "train_size": len(dataset.train),
        "test_size": len(dataset.test),
        "holdout": dataset.holdout,
        "subset": dataset.subset,
        "device": resolve_device(device).type,
    }


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise UserError unless there are seeds, different ones, and in range."""
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < SEEDS for seed in seeds):
        raise UserError(f"seeds are {list(seeds)}; allowed: one or more, all different, 0 to {SEEDS - 1}")


def check_fraction(fraction: float, recipe: Recipe, dataset: Dataset) -> None:
    """Raise UserError unless `fraction` leaves something on either side, and fills a batch."""
    if not 0 < fraction < 1:
        raise UserError(f"fraction is {fraction}; allowed: above 0, below 1")
    size = first_size(dataset, fraction)
    if size < recipe.batch_size:
        raise UserError(f"the first phase has {size} images; allowed: batch_size, {recipe.batch_size}, or more")


def first_size(dataset: Dataset, fraction: float) -> int:
    """Images of the first phase."""
    return round(len(dataset.train) * fraction)


@contextmanager
def kept_in(folder: str | Path | None) -> Iterator[Path]:
    """`folder`, or for None a temporary one that is removed at the end."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def paired(values: Sequence[float], others: Sequence[float]) -> Summary:
    """Mean and interval of the differences of two results for each seed."""
    return summarize([value - other for value, other in zip(values, others, strict=True)])


def summary(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, standard deviation and 95% interval of `values`, and these, ready for JSON."""
    return {**dataclasses.asdict(summarize(values)), "values": list(values)}
