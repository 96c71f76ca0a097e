"""Data: verified archives to resident uint8 splits, and augmented batches of them."""

from fastcifar.data.dataset import (
    CIFAR10_CLASSES,
    CIFAR10_MEAN,
    CIFAR10_STD,
    Dataset,
    Split,
    describe,
)
from fastcifar.data.device import resolve_device
from fastcifar.data.download import DownloadError
from fastcifar.data.load import load_dataset
from fastcifar.data.loader import Loader
from fastcifar.data.plan import Batch, EpochPlan
from fastcifar.data.selection import hardest, subset_indices
from fastcifar.recipes.augmentation import Augment

__all__ = [
    "CIFAR10_CLASSES",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "Augment",
    "Batch",
    "Dataset",
    "DownloadError",
    "EpochPlan",
    "Loader",
    "Split",
    "describe",
    "hardest",
    "load_dataset",
    "resolve_device",
    "subset_indices",
]
