"""`load_dataset`: a dataset by its name."""

from __future__ import annotations

import dataclasses
import inspect
from os import PathLike
from pathlib import Path

import torch

from fastcifar.catalogue import DATASETS, DEFAULT_DATASET
from fastcifar.data.dataset import Dataset
from fastcifar.errors import UserError
from fastcifar.registry import resolve


def load_dataset(
    name: str = DEFAULT_DATASET,
    data_dir: str | PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    holdout: int = 0,
) -> Dataset:
    """Return the dataset that is registered under `name`, all splits on `device`; `holdout` training images stand in
    for the test set (0: none).

    CIFAR-10, the default, is looked for in `data_dir`, else in `$FASTCIFAR_DATA`, else in the user's cache folder, else
    downloaded to there (`load_cifar10` says what may lie there). "synthetic" is made in memory and reads none of them.
    The loader of any other gets `data_dir`, if it takes it.
    Raises UserError for bad input or damaged data, and its subclass DownloadError where a download fails.
    """
    load = resolve(DATASETS[name].load)
    takes_folder = "data_dir" in inspect.signature(load).parameters
    dataset = load(data_dir=None if data_dir is None else Path(data_dir)) if takes_folder else load()
    if not isinstance(dataset, Dataset):
        raise UserError(f"the loader of {name!r} gives a {type(dataset).__name__}; allowed: a fastcifar.Dataset")
    if dataset.name != name:  # by which a run's record finds it again
        dataset = dataclasses.replace(dataset, name=name)
    if holdout:
        dataset = dataset.hold_out(holdout)
    return dataset.to(device)
