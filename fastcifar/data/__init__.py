"""Data: verified archives to resident uint8 splits, and augmented batches of them."""

from fastcifar.data.dataset import (
    CIFAR10_CLASSES,
    CIFAR10_MEAN,
    CIFAR10_STD,
    Dataset,
    Split,
    describe,
    subset_indices,
)
from fastcifar.data.download import DownloadError
from fastcifar.data.load import DATASETS, load_dataset
from fastcifar.data.loader import Loader
from fastcifar.data.plan import Batch, EpochPlan
from fastcifar.data.selection import Selection
from fastcifar.recipes.recipe import Augment

__all__ = [
    "CIFAR10_CLASSES",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "DATASETS",
    "Augment",
    "Batch",
    "Dataset",
    "DownloadError",
    "EpochPlan",
    "Loader",
    "Selection",
    "Split",
    "describe",
    "load_dataset",
    "subset_indices",
]
