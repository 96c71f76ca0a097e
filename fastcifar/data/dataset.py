"""`Split` and `Dataset`: labelled images that live on one device, and the parts that are cut from them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from fastcifar.errors import UserError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Krizhevsky's ten classes in the order of their labels."""

CIFAR10_MEAN = (125.31, 122.95, 113.87)
CIFAR10_STD = (62.99, 62.09, 66.70)
"""Red, green, blue over the 50,000 training images, in 0..255 units, as Page rounds them (How to train your ResNet)."""

_HOLDOUT_SEED = 50_000
"""Fixed for ever: another number would make another slice, and old results could not be compared."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 `[N, H, W, 3]` and their labels int64 `[N]`, on one device. Raises UserError for other tensors."""

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(f"images are {_kind(images)}; allowed: uint8 [N, H, W, 3]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise UserError(f"labels are {_kind(labels)}; allowed: int64 [{len(images)}], one for each image")
        if images.device != labels.device:
            raise UserError(f"images are on {images.device} and labels on {labels.device}; allowed: one device")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def to(self, device: str | torch.device) -> Split:
        """The same split on `device`; no copy where it is there already."""
        return Split(self.images.to(device), self.labels.to(device))

    def subset(self, indices: torch.Tensor) -> Split:
        """The images at `indices` (int64 `[n]`, or bool `[N]`), in that order."""
        indices = indices.to(self.device)
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, and what there is to know about them."""

    name: str
    """Which dataset, as `load_dataset` calls it; every output of a run says it."""
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Red, green, blue of the training images, in 0..255 units; what batches are normalised with."""
    sha256: str
    """Of both whole splits as loaded (`fingerprint`), whatever was held out or left away since."""
    source: str
    """Where it came from: the folder or file, or how it was made."""
    holdout: int = 0
    """Training images that stand in for the test set; 0: `test` is the test set."""
    subset: dict[str, object] | None = None
    """What `take` was asked for; None: all training images."""

    def to(self, device: str | torch.device) -> Dataset:
        """The same dataset with both splits on `device`."""
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device))

    def hold_out(self, count: int) -> Dataset:
        """The dataset to develop on: `test` becomes `count` training images, equally many of each class or nearly so,
        and `train` the rest. The same slice always, on every machine; a smaller one lies within a larger one.

        Raises UserError for a count that leaves nothing on either side, and where a slice is held out already.
        """
        if self.holdout:
            raise UserError(f"holdout is {count}, but {self.holdout} images are held out already; allowed: once")
        if not 0 < count < len(self.train):
            raise UserError(f"holdout is {count}; allowed: 1 to {len(self.train) - 1} of the training images")
        held = subset_indices(self.train.labels, count, _HOLDOUT_SEED, balanced=True)
        rest = torch.ones(len(self.train), dtype=torch.bool)
        rest[held] = False
        return dataclasses.replace(self, train=self.train.subset(rest), test=self.train.subset(held), holdout=count)

    def take(
        self, size: int | None = None, seed: int = 0, balanced: bool = False, classes: Collection[int] | None = None
    ) -> Dataset:
        """The dataset with fewer training images, those of `subset_indices`; `subset` records the choice, and under
        "of" the one before, if these are some of its images. With `classes` the test split too keeps these alone;
        labels and the number of classes stay as they are."""
        for label in classes or ():
            if not 0 <= label < len(self.classes):
                raise UserError(f"classes has {label}; allowed: 0 to {len(self.classes) - 1}")
        chosen = self.train.subset(subset_indices(self.train.labels, size, seed, balanced, classes))
        labels, test = None, self.test
        if classes is not None:
            labels = sorted(set(classes))
            test = test.subset(torch.isin(test.labels, torch.tensor(labels, device=test.device)))
            if not len(test):
                raise UserError(f"classes is {labels}, which leaves no test images; allowed: classes that it holds")
        subset = {"size": len(chosen), "seed": seed, "balanced": balanced, "classes": labels}
        if self.subset:
            subset["of"] = self.subset
        return dataclasses.replace(self, train=chosen, test=test, subset=subset)


def subset_indices(
    labels: torch.Tensor,
    size: int | None,
    seed: int,
    balanced: bool = False,
    classes: Collection[int] | None = None,
) -> torch.Tensor:
    """`size` of the places in `labels` (int64 `[N]`), drawn without replacement; int64 `[size]`, ascending, on the CPU.

    Nested: with the other arguments the same, a smaller size is contained in a larger one. `classes` draws from these
    labels alone; `balanced` takes as nearly as possible the same number of each class; a size of None takes all.
    Raises UserError for a size above what there is.
    """
    labels = labels.cpu().numpy()
    # RandomState's numbers are frozen (NEP 19), those of torch and of numpy's newer generators may change by version.
    order = np.random.RandomState(seed).permutation(len(labels))
    if classes is not None:
        order = order[np.isin(labels[order], list(classes))]
    if balanced:
        # One of each class in turn: sort by an image's place among those of its class.
        place = np.empty(len(order), dtype=np.int64)
        for label in np.unique(labels[order]):
            same = labels[order] == label
            place[same] = np.arange(same.sum())
        order = order[np.argsort(place, kind="stable")]
    size = len(order) if size is None else size
    if not 0 < size <= len(order):
        of_classes = "" if classes is None else f" of classes {', '.join(map(str, sorted(classes)))}"
        raise UserError(f"subset size is {size}; allowed: 1 to {len(order)}, the training images{of_classes}")
    return torch.from_numpy(np.sort(order[:size]))


def fingerprint(train: Split, test: Split) -> str:
    """sha256 of the training images, training labels, test images and test labels, in this order: images as bytes of
    `[N, H, W, 3]`, labels as one byte each. The same for the same data, whatever form it was read from."""
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update(split.images.cpu().contiguous().numpy())
        digest.update(split.labels.cpu().to(torch.uint8).numpy())
    return digest.hexdigest()


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of red, green and blue over uint8 `[N, H, W, 3]`, in 0..255 units."""
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(dim=-1):
        # A histogram is exact and needs no float copy of the images.
        share = torch.bincount(channel.flatten(), minlength=256).cpu().double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append((share * (values - mean) ** 2).sum().sqrt().item())
    return tuple(means), tuple(stds)


def describe(dataset: Dataset) -> dict[str, object]:
    """What there is to know about a dataset, ready for JSON; mean and std are measured on the training split as it is
    now, counts are per class."""
    mean, std = channel_statistics(dataset.train.images)
    count = len(dataset.classes)
    return {
        "name": dataset.name,
        "source": dataset.source,
        "train_size": len(dataset.train),
        "test_size": len(dataset.test),
        "image_shape": list(dataset.train.images.shape[1:]),
        "classes": list(dataset.classes),
        "train_counts": torch.bincount(dataset.train.labels, minlength=count).tolist(),
        "test_counts": torch.bincount(dataset.test.labels, minlength=count).tolist(),
        "holdout": dataset.holdout,
        "subset": dataset.subset,
        "mean": list(mean),
        "std": list(std),
        "sha256": dataset.sha256,
    }


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
