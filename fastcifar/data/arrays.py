"""Datasets made of arrays in memory: their conversion to the tensors of a `Split`, and what is measured on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from fastcifar.data.dataset import Dataset, Split, channel_statistics, fingerprint, given_colors, numbered
from fastcifar.data.selection import fold_of
from fastcifar.errors import Notice, UserError, brief
from fastcifar.recipes.augmentation import by_channel

_UNLABELED = -1
_TEST_SHARE = 5
_PIECE = 1 << 24
"""Values that are converted at once, so that floats take no memory beside the images."""

Given = tuple[Any, Any, str, str]
"""Images and labels of a split as they are given, and what each is called in errors."""


def from_parts(parts: Mapping[str, Given], classes: Sequence[str] | None = None, **facts: Any) -> Dataset:
    """Return the dataset of arrays, copied: "train", "test" and perhaps "val", images as `images_from` takes them, else
    as `labeled` does."""
    given = {part: (images_from(x, called), y, called, y_called) for part, (x, y, called, y_called) in parts.items()}
    return labeled(given, classes, **facts)


def labeled(parts: Mapping[str, Given], classes: Sequence[str] | None = None, **facts: Any) -> Dataset:
    """Return the dataset of images uint8 `[N, H, W, 3]` on the CPU, which are taken as they are, and their labels.

    parts: "test" and perhaps "train" and "val", or "train" alone, of which a fifth is the test then; labels as
        `labels_from` takes them.
    classes: names in the order of the labels; None: the labels of the training images where these are names, in
        alphabetical order, else numbers up to the largest label.
    facts: see `measured`.

    Raises UserError for what does not fit.
    """
    if "train" in parts:
        _, y, _, called = parts["train"]
        if y is None:
            raise UserError(f"{called} is missing; allowed: a label for each training image")
        classes = names_in(array_of(y, called)) if classes is None else classes
    classes = classes if classes is None or isinstance(classes, str) else tuple(classes)
    splits = {
        part: Split(images, labels_from(y, len(images), called, classes))
        for part, (images, y, _, called) in parts.items()
    }
    for part, split in splits.items():
        (low, high), least = split.label_range, 0 if part == "train" else _UNLABELED
        if low < least or (classes is not None and high >= len(classes)):
            allowed = f"{least} or more" if classes is None else f"{least} to {len(classes) - 1}"
            raise UserError(f"{parts[part][3]} is {low} to {high}; allowed: {allowed}")
    called = {part: each[2] for part, each in parts.items()}
    if splits.keys() == {"train"}:
        splits, called = split_off(splits["train"]), {part: called["train"] for part in ("train", "test")}
    return measured(splits, classes, called=called, **facts)


def split_off(train: Split) -> dict[str, Split]:
    """Return the training images of a set that has no others as two splits, a fifth of each class being the test: the
    same images always. Raises UserError for one image."""
    held = fold_of(train.labels, 1, _TEST_SHARE)
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[held] = False
    if not rest.any():
        raise UserError("there is one image, and no other to test on; allowed: two or more")
    return {"train": train.subset(rest), "test": train.subset(held)}


def measured(
    splits: Mapping[str, Split],
    classes: Sequence[str] | None = None,
    *,
    name: str,
    source: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    called: Mapping[str, str] | None = None,
) -> Dataset:
    """Return the dataset of these splits, with its fingerprint.

    splits: "test", perhaps "train" and "val". Without "train" it is a set to evaluate on.
    classes: names in the order of the labels; numbers up to the largest label unless given.
    name, source: see `Dataset`.
    mean, std: three numbers for red, green and blue, in 0..255 units; measured on the training images, or on those of
        the test where there are none, unless given.
    called: the splits' names in errors.

    Raises UserError for splits that do not fit each other.
    """
    first, called = next(iter(splits)), called or {part: f"the {part} split" for part in splits}
    for part, split in splits.items():
        side, sides = (list(images.shape[1:3]) for images in (split.images, splits[first].images))
        if side != sides:
            raise UserError(f"the images of {called[part]} are {side} pixels; allowed: {sides}, as of {called[first]}")
    if classes is None:
        largest = max(splits, key=lambda part: splits[part].label_range[1])
        classes = numbered(splits[largest].label_range[1], f"the labels of {called[largest]}")
    colors = channel_statistics(splits[first].images) if mean is None or std is None else (mean, std)
    mean = by_channel("mean", colors[0]) if mean is None else given_colors("mean", "mean", mean)
    std = by_channel("std", colors[1], above=0) if std is None else given_colors("std", "std", std)
    refuse_other_units(mean, std, lambda: channel_statistics(splits[first].images))
    test, val = splits["test"], splits.get("val")
    train = splits.get("train", Split(test.images[:0], test.labels[:0]))
    sha256 = fingerprint(*(split for split in (train, test, val) if split is not None))
    return Dataset(name, train, test, classes, mean, std, sha256, source, val=val)  # pyright: ignore[reportArgumentType]


def refuse_other_units(
    mean: Sequence[float],
    std: Sequence[float],
    measure: Callable[[], tuple[Sequence[float], Sequence[float]]],
    where: str = "",
) -> None:
    """Raise UserError for a mean or deviation in units of 0..1, where that of the images themselves, which `measure`
    returns in those of 0..255, is more; and say it where the images are nearly black, as a mask of 0 and 1 is."""
    if max(mean) > 1 and max(std) > 1:
        return
    own = measure()
    for name, given, found in zip(("mean", "std"), (mean, std), own, strict=True):
        if 0 < max(given) <= 1 < max(found):
            numbers = ", ".join(f"{each:.4g}" for each in found)
            raise UserError(f"{where}{name} is {list(given)}, the images' is {numbers}; allowed: 0 to 255 units")
    if 0 < max(own[0]) <= 1:
        said = f"{where}the training images are nearly black, {max(own[0]):.2g} of 255 in the mean"
        warnings.warn(
            f"{said}; where 1 is to be white, their values are to be floats, or times 255", Notice, stacklevel=2
        )


def images_from(values: ArrayLike | torch.Tensor, name: str) -> torch.Tensor:
    """Return a copy of `values` as images uint8 `[N, H, W, 3]` on the CPU.

    `values` are `[N, H, W, 3]`, `[N, 3, H, W]` or, grey, `[N, H, W]`, `[N, H, W, 1]` or `[N, 1, H, W]`; integers from 0
    to 255, or floats from 0 to 1, which are rounded to 8 bits. Raises UserError, with their `name`, for others.
    """
    array = array_of(values, name)
    return torch.from_numpy(pixels_of(array, channels_last(array, name, "N, "), name))


def channels_last(array: np.ndarray, name: str, batch: str = "") -> np.ndarray:
    """Return a view of images as `[..., H, W, C]`, C being 3 or, grey, 1. `batch` is "N, " for many images, empty for
    one. Raises UserError, with their `name`, where it is not told which dimension is which."""
    shape, dims = f"{name} is {array.dtype} {list(array.shape)}", 2 + bool(batch)
    first, last = (array.ndim == dims + 1 and array.shape[place] in (1, 3) for place in (-3, -1))
    if array.ndim == dims:
        array = array[..., None]
    elif first and last:
        raise UserError(f"{shape}: its channels may come first or last; allowed: images wider than 3 pixels")
    elif first:
        array = np.moveaxis(array, -3, -1)
    elif not last:
        allowed = f"[{batch}H, W, 3], [{batch}3, H, W] or, grey, [{batch}H, W], [{batch}H, W, 1], [{batch}1, H, W]"
        raise UserError(f"{shape}; allowed: {allowed}")
    if not array.size:
        raise UserError(f"{shape}; allowed: one image or more")
    return array


def pixels_of(array: np.ndarray, view: np.ndarray, name: str) -> np.ndarray:
    """Return the values of `view`, images `[..., H, W, C]` of `array`, as uint8 with three channels. Raises UserError
    for values that are no pixels."""
    shape = f"{name} is {array.dtype} {list(array.shape)}"
    if array.dtype.kind == "b":
        raise UserError(f"{shape}, which does not say how bright True is; allowed: {name} as integers of 0 and 255")
    if array.dtype.kind not in "uif":
        raise UserError(f"{shape}; allowed: integers from 0 to 255 or floats from 0 to 1")
    most = 1 if array.dtype.kind == "f" else 255
    if array.dtype != np.uint8:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= most):  # a NaN fails both
            allowed = "integers from 0 to 255" if most == 255 else "floats from 0 to 1, or integers from 0 to 255"
            raise UserError(f"{name} is {array.dtype} from {low:g} to {high:g}; allowed: {allowed}")
    pixels = np.empty((*view.shape[:-1], 3), dtype=np.uint8)
    rows = max(1, _PIECE // max(1, view[0].size))
    for start in range(0, len(view), rows):
        piece = view[start : start + rows]
        pixels[start : start + rows] = np.rint(piece * array.dtype.type(255)) if most == 1 else piece
    return pixels


def labels_from(
    values: ArrayLike | torch.Tensor | None, count: int, name: str, classes: Sequence[str] | None = None
) -> torch.Tensor:
    """Return a copy of `values` as int64 `[count]` on the CPU: integers, `[count]` or `[count, 1]`, or names that
    `classes` has; `count` times -1 for None. Raises UserError, with their `name`, for others."""
    if values is None:
        return torch.full((count,), _UNLABELED)
    array = array_of(values, name)
    if array.shape == (count, 1):  # as Keras has them
        array = array[:, 0]
    if array.shape == (count,) and names_in(array) is not None:
        return torch.tensor(_numbers(array, name, classes or ()), dtype=torch.int64)
    if array.dtype.kind not in "ui" or array.shape != (count,):
        allowed = f"integers [{count}], one for each image, or the names of classes"
        raise UserError(f"{name} is {array.dtype} {list(array.shape)}; allowed: {allowed}")
    if count and not (array.min() >= _UNLABELED and array.max() <= np.iinfo(np.int64).max):
        raise UserError(f"{name} is {array.min()} to {array.max()}; allowed: 0 or more, and -1 for an unlabeled image")
    return torch.from_numpy(array.astype(np.int64))


def names_in(labels: np.ndarray) -> tuple[str, ...] | None:
    """Return the names in labels that are names, in alphabetical order, None among them standing for an unlabeled
    image; None where they are numbers or something else."""
    if labels.dtype.kind not in "UO" or not labels.size:
        return None
    found = {each for each in labels.flat if each is not None}
    return tuple(sorted(map(str, found))) if found and all(isinstance(each, str) for each in found) else None


def _numbers(labels: np.ndarray, name: str, classes: Sequence[str]) -> list[int]:
    """Return the place of each label in `classes`."""
    places = {None: _UNLABELED} | {label: place for place, label in reversed([*enumerate(map(str, classes))])}
    for number, label in enumerate(labels):
        if label not in places:
            allowed = brief(list(classes)) if classes else "names as in the training images, or numbers in both"
            raise UserError(f"{name} has {brief(str(label))} at {number}, which is no class; allowed: {allowed}")
    return [places[label] for label in labels]


def array_of(values: ArrayLike | torch.Tensor, name: str) -> np.ndarray:
    """Return `values` as an array, without a copy where that can be. Raises UserError, with their `name`, for what is
    none."""
    try:
        if isinstance(values, torch.Tensor):
            # numpy has no bfloat16, and half precision is too narrow to be multiplied by 255
            is_narrow = values.is_floating_point() and values.element_size() < 4
            return (values.float() if is_narrow else values).numpy(force=True)
        if np.ma.is_masked(values):
            raise TypeError("some of its values are masked")
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal lengths; sparse, meta and other tensors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is no array: {reason}; allowed: one shape throughout, of values in memory") from error
    return array.astype(np.float32) if array.dtype == np.float16 else array
