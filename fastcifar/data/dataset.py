"""`Dataset`: splits of labeled images on one device, facts about them, and subsets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike

from fastcifar.catalogue import no_training_images
from fastcifar.data.resize import resized_splits
from fastcifar.data.selection import fold_of, subset_indices
from fastcifar.data.split import Split, pixels_of, size_of
from fastcifar.errors import UserError, brief
from fastcifar.host import TORCH
from fastcifar.output import short_name
from fastcifar.recipes.augmentation import MOST_SIDE, by_channel
from fastcifar.recipes.declare import Declaration, checked, plain

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Krizhevsky's ten classes in the order of their labels."""

CIFAR10_MEAN = (125.31, 122.95, 113.87)
CIFAR10_STD = (62.99, 62.09, 66.70)
"""Red, green, blue over the 50,000 training images, in 0..255 units, as Page rounds them (How to train your ResNet)."""

MOST_CLASSES = 100_000
"""Classes that the labels in a file or an array may make, where no names are given."""
BEFORE_HOLDOUT = "before_holdout"
"""In a choice of training images: images were held out of what it left, not before it."""
_HOLDOUT_SEED = 50_000
"""Never to be changed: another seed holds out other images, and old results could not be compared."""


def given_colors(name: str, where: str, values: object) -> tuple[float, ...]:
    """Return the "mean" or "std" that a file or a user gives. Raises UserError, with `where`, for what no images of 0
    to 255 have."""
    found = by_channel(where, values, **({"above": 0} if name == "std" else {}))
    if not all(0 <= each <= 255 for each in found):
        raise UserError(f"{where} is {list(found)}; allowed: 0 to 255 units")
    return found


def numbered(last: int, where: str) -> tuple[str, ...]:
    """Return names for the classes of labels up to `last`: their numbers, one at least. Raises UserError, with what is
    called `where`, where these are beyond reason, before anything of their number is allocated."""
    if last >= MOST_CLASSES:
        raise UserError(f"{where} are up to {last}; allowed: up to {MOST_CLASSES - 1}")
    return tuple(map(str, range(max(1, last + 1))))


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
    folded: str = ""
    """Which part of the training images `test` is by `fold`, as in "1/5"; empty: none."""
    resized: int = 0
    """Side in pixels that the images were brought to by `resize`; 0: they have their own."""
    tests_val: bool = False
    """`test` is the validation split, by `labeled_test`."""

    def __post_init__(self) -> None:
        is_list = isinstance(self.classes, Collection) and not isinstance(self.classes, str | bytes)
        classes = tuple(map(str, plain(tuple(self.classes)))) if is_list else ()
        if not classes:
            raise UserError(f"classes is {self.classes!r}; allowed: a list of names, one or more")
        if len({*classes}) < len(classes):
            twice = next(name for place, name in enumerate(classes) if name in classes[:place])
            raise UserError(f"two classes are named {brief(twice, 60)}; allowed: a name for each")
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
            ("of", pixels_of(split), pixels_of(self.train)),
        ):
            if there != here:
                raise UserError(f"the {name} images are {what} {there}; allowed: {here}, as the training images")
        (low, high), last = split.label_range, len(self.classes) - 1
        if len(split) and not split.labels.is_meta and (low < least or high > last):
            allowed = f"{least} to {last}" + (", -1 being unlabeled" if least else "")
            raise UserError(f"the {name} labels are {low} to {high} of {last + 1} classes; allowed: {allowed}")

    def __repr__(self) -> str:
        parts = {"training": self.train, "validation": self.val, "test": self.test}
        sizes = ", ".join(f"{size_of(split)} ({name})" for name, split in parts.items() if split is not None)
        return f"Dataset({self.name!r}: {sizes}, {len(self.classes)} classes, on {self.train.device})"

    @property
    def changes(self) -> dict[str, object]:
        """What `fold`, `resize` and `labeled_test` made of it, by the names in a run's record; nothing where they were
        not called."""
        made = {"fold": self.folded, "resized": self.resized, "tests_val": self.tests_val}
        return {name: value for name, value in made.items() if value}

    @property
    def title(self) -> str:
        """The name in a line for readers: of a path, what stands last."""
        return short_name(self.name)

    @property
    def tested(self) -> str:
        """What the images of `test` are: "test", "held-out" or "validation"."""
        return "validation" if self.tests_val else "held-out" if self.holdout else "test"

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

        x, x_test, x_val: images `[N, H, W, 3]`, `[N, 3, H, W]` or, grey and made three channels, `[N, H, W]`,
            `[N, H, W, 1]` or `[N, 1, H, W]`; integers from 0 to 255, or floats from 0 to 1, rounded to 8 bits.
        y, y_test, y_val: labels, `[N]` or `[N, 1]`: integers from 0, or names. For test and validation images also -1
            for an unlabeled one, or None if all are.
        classes: the classes' names in the order of their labels. Unless given, the names that `y` has in alphabetical
            order, or numbers up to the largest label.
        mean, std: three numbers for red, green and blue, in 0..255 units; those of the training images unless given.
        name: the dataset's name in every output of a run.

        Raises UserError for arrays that do not fit these or each other.
        """
        from fastcifar.data.arrays import from_parts

        if x_val is None and y_val is not None:
            raise UserError("y_val is given without x_val; allowed: both, x_val alone or neither")
        parts = {"train": (x, y, "x", "y"), "test": (x_test, y_test, "x_test", "y_test")}
        parts |= {} if x_val is None else {"val": (x_val, y_val, "x_val", "y_val")}
        return from_parts(parts, classes, mean=mean, std=std, name=name, source="arrays in memory")

    @classmethod
    @TORCH.applied()
    def from_any(
        cls,
        train: object,
        test: object,
        *,
        val: object = None,
        classes: Sequence[str] | None = None,
        resize: int = 0,
        name: str = "images",
    ) -> Dataset:
        """Make a dataset of data sets of torchvision's or Hugging Face's form, or of any sequence of (image, label).

        train, test, val: each read once, item by item; arrays in `.data` and `.targets` are taken as they are where no
            transform is set. An image is PIL's, or an array or tensor as `from_arrays` has it, without the N. A test or
            validation image without a label, or with None or -1, is unlabeled.
        classes: the classes' names; those that `train` knows, else as in `from_arrays`, unless given.
        resize: pixels; bring each image to this side, the shorter one being resized and the longer one cropped.
        name: the dataset's name in every output of a run.

        Raises UserError, with its place, for an image or a label that is none, and for images of unequal sizes.
        """
        from fastcifar.data.items import from_items

        return from_items({"train": train, "test": test, "val": val}, classes, resize, name)

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
        self._require_whole(f"holdout is {count}")
        some = Declaration(at_least=1, below=len(self.train), unit="of the training images")
        count = checked("holdout", count, int, some)
        return self._without(subset_indices(self.train.labels, count, _HOLDOUT_SEED, balanced=True))

    @TORCH.applied()
    def fold(self, number: int, folds: int) -> Dataset:
        """Return the dataset of one fold of a cross-validation: `test` becomes part `number`, from 1, of `folds` parts
        of the training images, `train` the rest, and `val` stays. The parts are the same images always, have no image
        in common, and have about equally many of each class.

        Raises UserError for a part that there is not, for more parts than images, and as `hold_out` does.
        """
        self._require_whole(f"fold is {number}/{folds}")
        parts = Declaration(at_least=2, at_most=len(self.train), unit="parts of the training images")
        folds = checked("the number of folds", folds, int, parts)
        number = checked("the fold", number, int, Declaration(at_least=1, at_most=folds))
        return dataclasses.replace(self._without(fold_of(self.train.labels, number, folds)), folded=f"{number}/{folds}")

    def _require_whole(self, asked: str) -> None:
        self.require_training_images()
        if self.holdout:
            held = f"fold {self.folded} is" if self.folded else f"{self.holdout} images are"
            raise UserError(f"{asked}, but {held} held out already; allowed: once")

    def _without(self, held: torch.Tensor) -> Dataset:
        """Return the dataset with the training images at `held` as its test split."""
        rest = torch.ones(len(self.train), dtype=torch.bool)
        rest[held] = False
        test = self.train.subset(held)
        subset = self.subset and {**self.subset, BEFORE_HOLDOUT: True}
        return dataclasses.replace(self, train=self.train.subset(rest), test=test, holdout=len(held), subset=subset)

    @TORCH.applied()
    def resize(self, side: int) -> Dataset:
        """Return the dataset with all images brought to `side` by `side` pixels, on their device, or in host memory
        where they lie outside of it: bilinear and antialiased, as `resized` says.

        Mean and standard deviation stay: those to normalize with are the set's published ones, whatever the side.
        Raises UserError for a second time, and for more than the device's memory holds.
        """
        side = checked("resize", side, int, Declaration(at_least=1, at_most=MOST_SIDE, unit="pixels"))
        if self.resized == side:  # as the files were read
            return self
        if self.resized:
            raise UserError(f"resize is {side}, but the images are resized to {self.resized} already; allowed: once")
        if self.train.image_shape[:2] == (side, side):
            return self
        splits = {"train": self.train, "test": self.test, **({"val": self.val} if self.val else {})}
        return dataclasses.replace(self, **resized_splits(splits, side), resized=side)

    def labeled_test(self) -> Dataset:
        """Return the dataset to measure on: as it is, or where no test image has a label with `val` in the place of
        `test`. Raises UserError where no validation image has one either."""
        if self.test.label_range[1] >= 0:
            return self
        if self.val is None or self.val.label_range[1] < 0:
            allowed = "--holdout N (holdout=N), which tests on N training images, or a data set with labels"
            raise UserError(f"no test image of {self.name} has a label; allowed: {allowed}")
        return dataclasses.replace(self, test=self.val, val=None, tests_val=True)

    @TORCH.applied()
    def take(
        self, size: int | None = None, seed: int = 0, balanced: bool = False, classes: Collection[int] | None = None
    ) -> Dataset:
        """Return the dataset with fewer training images, those of `subset_indices`, which lists the arguments.

        With `classes`, the test and validation splits too keep only images with these labels, or all where none has a
        label. Labels and the number of classes stay as they are. `subset` records the choice, and under "of" an earlier
        one.
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
                if split is None or split.label_range[1] < 0:
                    continue
                kept[name] = split.subset(torch.isin(split.labels, torch.tensor(classes, device=split.device)))
                if not len(kept[name]):
                    which = f"which leaves no {name} images"
                    raise UserError(f"classes is {classes}, {which}; allowed: classes that it holds")
        subset = {"size": len(chosen), "seed": seed, "balanced": balanced, "classes": classes}
        if self.subset:
            subset["of"] = self.subset
        return dataclasses.replace(self, train=chosen, subset=subset, **kept)


def fingerprint(*splits: Split) -> str:
    """Return the sha256 of the images and labels of each split (training, test, validation): images as bytes of
    `[N, H, W, 3]`, labels as one byte each, or eight in a split that has others than 0 to 255."""
    digest = hashlib.sha256()
    for split in splits:
        for images in split.pieces():
            digest.update(images.contiguous().numpy().data)
        labels = split.labels.cpu()
        narrow = labels.to(torch.uint8)
        digest.update((narrow if torch.equal(narrow.long(), labels) else labels.contiguous()).numpy().data)
    return digest.hexdigest()


@TORCH.applied()
def channel_statistics(
    images: torch.Tensor | Iterable[torch.Tensor],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and standard deviation of red, green and blue over uint8 `[N, H, W, 3]`, or over several of that
    form, in 0..255 units, to normalize by: of a channel that has one value alone the deviation is 1."""
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in [images] if isinstance(images, torch.Tensor) else images:
        for count, channel in zip(counts, part.unbind(dim=-1), strict=True):
            # A histogram is exact and needs no float copy of the images.
            count += torch.bincount(channel.flatten(), minlength=256).cpu()
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for share in counts.double() / counts[0].sum():
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append((share * (values - mean) ** 2).sum().sqrt().item() if share.max() < 1 else 1.0)
    return tuple(means), tuple(stds)


def describe(dataset: Dataset) -> dict[str, object]:
    """Return facts about a dataset, ready for JSON. Mean and std are measured on the training split as it is now, or
    those to normalize with, where it is empty or does not lie on the device. Counts are of labeled images per class.
    Without a validation split its entries are None."""
    is_measured = len(dataset.train) > 0 and dataset.train.resident == "device"
    mean, std = channel_statistics(dataset.train.images) if is_measured else (dataset.mean, dataset.std)

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
        "image_shape": list(dataset.train.image_shape),
        "classes": list(dataset.classes),
        "train_counts": counts(dataset.train),
        "test_counts": counts(dataset.test),
        "val_counts": None if val is None else counts(val),
        "holdout": dataset.holdout,
        **dataset.changes,
        "subset": dataset.subset,
        "mean": list(mean),
        "std": list(std),
        "sha256": dataset.sha256,
    }
