"""`load_dataset`: a dataset by its name."""

from __future__ import annotations

from os import PathLike

import torch

from fastcifar.data.cifar10 import load_cifar10
from fastcifar.data.dataset import Dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError

DATASETS = ("cifar10", "synthetic")


def load_dataset(
    name: str = "cifar10",
    data_dir: str | PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    holdout: int = 0,
) -> Dataset:
    """The dataset `name` with both splits on `device`; `holdout` training images stand in for the test set (0: none).

    "cifar10" is looked for in `data_dir`, else in `$FASTCIFAR_DATA`, else in the user's cache folder, else downloaded
    to there (`fastcifar.data.cifar10` says what may lie there). "synthetic" is made in memory and reads none of them.
    Raises UserError for bad input or damaged data, and its subclass DownloadError where a download fails.
    """
    if name not in DATASETS:
        raise UserError(f"dataset is {name!r}; allowed: {', '.join(DATASETS)}")
    dataset = make_synthetic() if name == "synthetic" else load_cifar10(data_dir)
    if holdout:
        dataset = dataset.hold_out(holdout)
    return dataset.to(device)
