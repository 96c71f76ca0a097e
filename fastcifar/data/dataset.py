"""`Split` and `Dataset`: labeled images on one device, and subsets of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastcifar.catalogue import no_training_images
from fastcifar.data.arrays import images_from, labels_from
from fastcifar.data.device import resolve_device
from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.recipes.augmentation import by_channel
from fastcifar.recipes.declare import Declaration, checked, plain

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Krizhevsky's ten classes in the order of their labels."""

CIFAR10_MEAN = (125.31, 122.95, 113.87)
CIFAR10_STD = (62.99, 62.09, 66.70)
"""Red, green, blue over the 50,000 training images, in 0..255 units, as Page rounds them (How to train your ResNet)."""

_HOLDOUT_SEED = 50_000
"""Never to be changed: another seed holds out other images, and old results could not be compared."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 `[N, H, W, 3]` and their labels int64 `[N]`, -1 for an unlabeled image, on one device.

    Images that do not lie in this order in memory are copied. Raises UserError for other tensors."""

    images: torch.Tensor
    labels: torch.Tensor
    label_range: tuple[int, int] = field(init=False)
    """The smallest and the largest label; -1 and -1 where there are none, or on the meta device."""

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for name, value in (("images", images), ("labels", labels)):
            if not isinstance(value, torch.Tensor):
                raise UserError(f"{name} are of type {type(value).__name__}; allowed: a tensor")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(f"images are {_kind(images)}; allowed: uint8 [N, H, W, 3]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise UserError(f"labels are {_kind(labels)}; allowed: int64 [{len(images)}], one for each image")
        if images.device != labels.device:
            raise UserError(f"images are on {images.device} and labels on {labels.device}; allowed: one device")
        object.__setattr__(self, "images", images.contiguous())
        object.__setattr__(self, "labels", labels.contiguous())
        known = len(labels) and not labels.is_meta
        low, high = torch.stack(labels.aminmax()).tolist() if known else (-1, -1)
        object.__setattr__(self, "label_range", (low, high))
        if low < -1:
            raise UserError(f"labels are {low} to {high}; allowed: 0 or more, and -1 for an unlabeled image")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({_size(self)}, on {self.device})"

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def side(self) -> int:
        """Height and width of the images in pixels. Raises UserError for images that are not square."""
        height, width = self.images.shape[1:3]
        if height != width:
            raise UserError(f"images are {height} by {width} pixels; allowed: square images")
        return height

    @property
    def labeled(self) -> torch.Tensor:
        """True for each image that has a label: bool `[N]`."""
        return self.labels >= 0

    def to(self, device: str | torch.device) -> Split:
        """Return the same split on `device`, without a copy if it is there already. Raises UserError where there is no
        such device."""
        device = resolve_device(device) if str(device) != "meta" else device
        return Split(self.images.to(device), self.labels.to(device))

    def subset(self, indices: torch.Tensor) -> Split:
        """Return the images at `indices` (int64 `[n]`, or bool `[N]`), in that order."""
        indices = torch.as_tensor(indices, device=self.device)
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, perhaps a validation split, and facts about them.

    The training split of a set to evaluate on is empty. Images of the test and the validation split may be unlabeled.
    Raises UserError for other splits without images, for splits of different devices or sides, for labels that name no
    class, and for a mean or std that cannot normalize images.
    """

    name: str
    """Name for `load_dataset`, and in every output of a run."""
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Red, green, blue of the training images, in 0..255 units, to normalize batches with."""
    sha256: str
    """`fingerprint` of all whole splits as loaded, before any hold-out or subset."""
    source: str
    """The folder or file that it was read from, or the way it was made."""
    holdout: int = 0
    """Number of training images that `test` consists of; 0: `test` is the test set."""
    subset: dict[str, object] | None = None
    """Size and arguments of `take`; None: all training images."""
    val: Split | None = None
    """The validation split, to make choices by, if the dataset has one beside the test set."""
    verified: str = ""
    """How its files were compared with the published ones, in words; empty where there are none."""

    def __post_init__(self) -> None:
        classes = tuple(map(str, plain(tuple(self.classes)))) if isinstance(self.classes, Collection) else ()
        if not classes:
            raise UserError(f"classes is {self.classes!r}; allowed: a list of names, one or more")
        facts = {
            "classes": classes,
            "mean": by_channel("mean", self.mean),
            "std": by_channel("std", self.std, above=0),
            "holdout": checked("holdout", self.holdout, int, Declaration(at_least=0)),
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)
        for name, split, least in (("train", self.train, 0), ("test", self.test, -1), ("val", self.val, -1)):
            if split is not None:
                self._check_split(name, split, least)

    def _check_split(self, name: str, split: Split, least: int) -> None:
        """Raise UserError unless `split` fits the training split and its labels are `least` or more and classes."""
        if not isinstance(split, Split):
            raise UserError(f"{name} is of type {type(split).__name__}; allowed: a Split")
        if not len(split) and name != "train":
            raise UserError(f"the {name} split holds no images; allowed: one or more")
        for what, there, here in (
            ("on", split.device, self.train.device),
            ("of", _pixels(split), _pixels(self.train)),
        ):
            if there != here:
                raise UserError(f"the {name} images are {what} {there}; allowed: {here}, as the training images")
        (low, high), last = split.label_range, len(self.classes) - 1
        if len(split) and not split.labels.is_meta and (low < least or high > last):
            allowed = f"{least} to {last}" + (", -1 being unlabeled" if least else "")
            raise UserError(f"the {name} labels are {low} to {high} of {last + 1} classes; allowed: {allowed}")

    def __repr__(self) -> str:
        parts = {"training": self.train, "validation": self.val, "test": self.test}
        sizes = ", ".join(f"{_size(split)} ({name})" for name, split in parts.items() if split is not None)
        return f"Dataset({self.name!r}: {sizes}, {len(self.classes)} classes, on {self.train.device})"

    def require_training_images(self) -> None:
        """Raise UserError if there are none."""
        if not len(self.train):
            raise no_training_images(self.name)

    @classmethod
    @TORCH.applied()
    def from_arrays(
        cls,
        x: ArrayLike | torch.Tensor,
        y: ArrayLike | torch.Tensor,
        x_test: ArrayLike | torch.Tensor,
        y_test: ArrayLike | torch.Tensor | None = None,
        *,
        x_val: ArrayLike | torch.Tensor | None = None,
        y_val: ArrayLike | torch.Tensor | None = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str = "arrays",
    ) -> Dataset:
        """Make a dataset of arrays in memory: numpy's, tensors, or lists of their form. It holds copies, on the CPU.

        x, x_test, x_val: images `[N, H, W, 3]`, `[N, 3, H, W]` or, grey and made three channels, `[N, H, W]`; integers
            from 0 to 255, or floats from 0 to 1, which are rounded to 8 bits.
        y, y_test, y_val: labels, integers `[N]` from 0. For test and validation images also -1 for an unlabeled one, or
            None if all are.
        classes: the classes' names in the order of their labels; numbers up to the largest label unless given.
        mean, std: three numbers for red, green and blue, in 0..255 units; those of the training images unless given.
        name: the dataset's name in every output of a run.

        Raises UserError for arrays that do not fit these or each other.
        """
        if x_val is None and y_val is not None:
            raise UserError("y_val is given without x_val; allowed: both, x_val alone or neither")
        train, test = _split(x, y, ""), _split(x_test, y_test, "_test")
        val = None if x_val is None else _split(x_val, y_val, "_val")
        splits = {"x": train, "x_test": test} if val is None else {"x": train, "x_test": test, "x_val": val}
        for part, split in splits.items():
            side, sides = (list(images.shape[1:3]) for images in (split.images, train.images))
            if side != sides:
                raise UserError(f"the images of {part} are {side} pixels; allowed: {sides}, as of x")
        if classes is None:
            classes = [str(label) for label in range(1 + max(int(split.labels.max()) for split in splits.values()))]
        measured = channel_statistics(train.images)
        mean = by_channel("mean", measured[0] if mean is None else mean)
        std = by_channel("std", measured[1] if std is None else std, above=0)
        sha256 = fingerprint(*splits.values())
        source = "arrays in memory"
        return cls(name, train, test, classes, mean, std, sha256, source, val=val)  # pyright: ignore[reportArgumentType]

    def to(self, device: str | torch.device) -> Dataset:
        """Return the same dataset with all splits on `device`. Raises UserError where there is no such device."""
        val = None if self.val is None else self.val.to(device)
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device), val=val)

    @TORCH.applied()
    def hold_out(self, count: int) -> Dataset:
        """Return the dataset to develop on: `test` becomes `count` training images, about equally many of each class,
        `train` the rest, and `val` stays. They are the same images always, and a smaller count is part of a larger one.

        Raises UserError if `train` or `test` would be empty, and if images are held out already.
        """
        self.require_training_images()
        if self.holdout:
            raise UserError(f"holdout is {count}, but {self.holdout} images are held out already; allowed: once")
        some = Declaration(at_least=1, below=len(self.train), unit="of the training images")
        count = checked("holdout", count, int, some)
        held = subset_indices(self.train.labels, count, _HOLDOUT_SEED, balanced=True)
        rest = torch.ones(len(self.train), dtype=torch.bool)
        rest[held] = False
        return dataclasses.replace(self, train=self.train.subset(rest), test=self.train.subset(held), holdout=count)

    @TORCH.applied()
    def take(
        self, size: int | None = None, seed: int = 0, balanced: bool = False, classes: Collection[int] | None = None
    ) -> Dataset:
        """Return the dataset with fewer training images, those of `subset_indices`, which lists the arguments.

        With `classes`, the test and validation splits too keep only images with these labels. Labels and the number of
        classes stay as they are. `subset` records the choice, and under "of" an earlier one.
        """
        if classes is not None:
            given = tuple(classes) if isinstance(classes, Collection) else classes
            classes = sorted(set(checked("classes", given, tuple[int, ...])))
            for label in classes:
                if not 0 <= label < len(self.classes):
                    raise UserError(f"classes has {label}; allowed: 0 to {len(self.classes) - 1}")
        self.require_training_images()
        seed, balanced = plain(seed), plain(balanced)
        chosen = self.train.subset(subset_indices(self.train.labels, size, seed, balanced, classes))
        kept = {"test": self.test, "val": self.val}
        if classes is not None:
            for name, split in kept.items():
                if split is None:
                    continue
                kept[name] = split.subset(torch.isin(split.labels, torch.tensor(classes, device=split.device)))
                if not len(kept[name]):
                    which = f"which leaves no {name} images"
                    raise UserError(f"classes is {classes}, {which}; allowed: classes that it holds")
        subset = {"size": len(chosen), "seed": seed, "balanced": balanced, "classes": classes}
        if self.subset:
            subset["of"] = self.subset
        return dataclasses.replace(self, train=chosen, subset=subset, **kept)


def subset_indices(
    labels: torch.Tensor,
    size: int | None,
    seed: int,
    balanced: bool = False,
    classes: Collection[int] | None = None,
) -> torch.Tensor:
    """Return places drawn without replacement: int64 `[size]`, ascending, on the CPU.

    labels: int64 `[N]`.
    size: number of places; None: all.
    seed: with the same seed (and other arguments), a smaller size is part of a larger one.
    balanced: take as nearly as possible the same number of each class.
    classes: draw only from places with these labels.

    Raises UserError if there are fewer than `size`.
    """
    seed = checked("the subset's seed", seed, int, Declaration(at_least=0, below=2**32))
    balanced = checked("balanced", balanced, bool)
    labels_of = labels.cpu().numpy()
    # RandomState's numbers are frozen (NEP 19); those of torch and of numpy's newer generators may change by version.
    order = np.random.RandomState(seed).permutation(len(labels_of))
    if classes is not None:
        order = order[np.isin(labels_of[order], list(classes))]
    if balanced:
        # One of each class in turn: sort by an image's rank among those of its class.
        rank = np.empty(len(order), dtype=np.int64)
        for label in np.unique(labels_of[order]):
            same = labels_of[order] == label
            rank[same] = np.arange(same.sum())
        order = order[np.argsort(rank, kind="stable")]
    size = len(order) if size is None else int(checked("subset size", size, int))
    if not 0 < size <= len(order):
        of_classes = "" if classes is None else f" of classes {', '.join(map(str, sorted(classes)))}"
        raise UserError(f"subset size is {size}; allowed: 1 to {len(order)}, the training images{of_classes}")
    return torch.from_numpy(np.sort(order[:size]))


def fingerprint(*splits: Split) -> str:
    """Return the sha256 of the images and labels of each split (training, test, validation): images as bytes of
    `[N, H, W, 3]`, labels as one byte each, or eight in a split that has others than 0 to 255."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.images.cpu().contiguous().numpy().data)
        labels = split.labels.cpu()
        narrow = labels.to(torch.uint8)
        digest.update((narrow if torch.equal(narrow.long(), labels) else labels.contiguous()).numpy().data)
    return digest.hexdigest()


@TORCH.applied()
def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and standard deviation of red, green and blue over uint8 `[N, H, W, 3]`, in 0..255 units."""
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
    """Return the facts about a dataset, ready for JSON. Mean and std are measured on the training split as it is now,
    or without training images those to normalize with; counts are of labeled images per class. Without a validation
    split its entries are None."""
    trains = len(dataset.train) > 0
    mean, std = channel_statistics(dataset.train.images) if trains else (dataset.mean, dataset.std)

    def counts(split: Split) -> list[int]:
        return torch.bincount(split.labels[split.labeled], minlength=len(dataset.classes)).tolist()

    val = dataset.val
    return {
        "name": dataset.name,
        "source": dataset.source,
        "verified": dataset.verified,
        "train_size": len(dataset.train),
        "test_size": len(dataset.test),
        "val_size": None if val is None else len(val),
        "image_shape": list(dataset.train.images.shape[1:]),
        "classes": list(dataset.classes),
        "train_counts": counts(dataset.train),
        "test_counts": counts(dataset.test),
        "val_counts": None if val is None else counts(val),
        "holdout": dataset.holdout,
        "subset": dataset.subset,
        "mean": list(mean),
        "std": list(std),
        "sha256": dataset.sha256,
    }


def _split(x: ArrayLike | torch.Tensor, y: ArrayLike | torch.Tensor | None, part: str) -> Split:
    images = images_from(x, f"x{part}")
    return Split(images, labels_from(y, len(images), f"y{part}"))


def _size(split: Split) -> str:
    return f"{len(split):,} images of {_pixels(split)}"


def _pixels(split: Split) -> str:
    height, width = split.images.shape[1:3]
    return f"{height} x {width}"


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
