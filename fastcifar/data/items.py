"""Datasets of whatever gives images and labels one by one: data sets of torchvision's and Hugging Face's form, and any
sequence. None of these packages is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastcifar.data.archives import damage
from fastcifar.data.arrays import Given, array_of, channels_last, images_from, labeled, pixels_of
from fastcifar.data.dataset import Dataset
from fastcifar.data.picture import is_picture, pillow, pixels
from fastcifar.errors import UserError, brief
from fastcifar.recipes.declare import Declaration, checked

_IMAGE = ("image", "img")
_LABEL = ("label", "labels", "fine_label")
_TRANSFORMS = ("transform", "target_transform", "transforms")
_COMPARED = 64
"""Items, evenly apart, that are compared with the arrays of a data set before these are taken in their place."""
_ALLOWED = "a data set of torchvision's or Hugging Face's form, or a sequence of (image, label)"


def from_items(
    sources: Mapping[str, object], classes: Sequence[str] | None = None, resize: int = 0, name: str = "images"
) -> Dataset:
    """Return the dataset of `sources`: "train", "test" and "val", which may be None; see `Dataset.from_any`."""
    resize = checked("resize", resize, int, Declaration(at_least=0, at_most=4096, unit="pixels"))
    parts: dict[str, Given] = {}
    for part, source in sources.items():
        if source is None and part == "val":
            continue
        names = class_names(source)
        if classes is None:
            classes = names if part == "train" else None
        elif names is not None and part != "train" and names != tuple(classes):
            other = f"the classes of {part} are {brief(list(names))}"
            raise UserError(f"{other}; allowed: those of train, {brief(list(classes))}, in that order")
        images, labels = _arrays(source, resize) or _read(source, part, resize)
        parts[part] = (images, labels, part, f"{part}'s labels")
    kinds = " and ".join(dict.fromkeys(type(source).__name__ for source in sources.values() if source is not None))
    return labeled(parts, classes, name=name, source=f"read from a {kinds} in memory")


def class_names(source: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that a data set knows, in the order of their labels; None where it knows none."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping):
        column = next((each for each in _LABEL if each in features), None)
        names = getattr(features[column], "names", None) if column else None
    else:
        names = getattr(source, "classes", None)
        if names is None and hasattr(source, "dataset") and hasattr(source, "indices"):  # torch's Subset
            return class_names(source.dataset)
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    return tuple(names) if is_list and names and all(isinstance(each, str) for each in names) else None


def _arrays(source: Any, resize: int) -> tuple[torch.Tensor, object] | None:
    """Return the images and labels that a data set of torchvision's form holds as arrays; None where it holds none, or
    where its items may be others."""
    data = getattr(source, "data", None)
    targets = getattr(source, "targets", None)
    targets = getattr(source, "labels", None) if targets is None else targets
    if not isinstance(data, np.ndarray | torch.Tensor) or not str(data.dtype).endswith("uint8"):
        return None
    if targets is None or any(getattr(source, each, None) is not None for each in _TRANSFORMS):
        return None
    try:
        if not len(data) == len(targets) == len(source):
            return None
        array = channels_last(array_of(data, "data"), "data", "N, ")
        if resize and array.shape[1:3] != (resize, resize):
            return None
        step = -(-len(data) // _COMPARED)
        for place in sorted({*range(0, len(data), step), len(data) - 1}):  # one's own class may change some
            image, label = source[place]
            same = np.array_equal(_image(image, "", 0), np.broadcast_to(array[place], (*array.shape[1:3], 3)))
            if not same or _label(label, "") != _label(targets[place], ""):
                return None
    except (UserError, TypeError, ValueError, IndexError, KeyError):  # item by item, which says what is wrong
        return None
    return images_from(data, "data"), targets


@dataclass
class _Images:
    """Images of one size as they come, in memory that grows."""

    part: str
    resize: int
    pixels: bytearray = field(default_factory=bytearray)
    shape: tuple[int, ...] = ()

    def add(self, image: object, place: str) -> None:
        array = _image(image, place, self.resize)
        self.shape = self.shape or array.shape
        if array.shape != self.shape:
            here, first = (f"{height} x {width}" for height, width, _ in (array.shape, self.shape))
            allowed = f"{first}, as {self.part}[0], or resize=N, which brings all images to N x N"
            raise UserError(f"{place} is {here} pixels; allowed: {allowed}")
        self.pixels += array.tobytes()

    def tensor(self) -> torch.Tensor:
        return torch.frombuffer(self.pixels, dtype=torch.uint8).view(-1, *self.shape)


def _read(source: object, part: str, resize: int) -> tuple[torch.Tensor, object]:
    """Return the images uint8 `[N, H, W, 3]` and the labels of a data set, read item by item."""
    images, labels = _Images(part, resize), []
    for number, item in enumerate(_items(source, part)):
        place = f"{part}[{number}]"
        image, label = _pair(item, place, part)
        images.add(image, place)
        labels.append(_label(label, f"the label of {place}"))
    if not labels:
        raise UserError(f"{part} holds no images; allowed: one or more")
    kinds = {type(label) for label in labels} - {type(None)}
    if len(kinds) > 1:
        raise UserError(f"the labels of {part} are names and numbers; allowed: one of them throughout")
    if int in kinds:
        labels = [-1 if label is None else label for label in labels]
    return images.tensor(), labels if kinds else None


def _items(source: Any, part: str) -> Iterator[Any]:
    if isinstance(source, Mapping):
        raise UserError(f"{part} is a {type(source).__name__} of {brief(list(source))}; allowed: one of these splits")
    if hasattr(source, "__len__") and hasattr(source, "__getitem__") and not hasattr(source, "__iter__"):
        return (source[place] for place in range(len(source)))  # it may know no end, as torch's need not
    if not isinstance(source, Iterable) or isinstance(source, str | bytes):
        raise UserError(f"{part} is of type {type(source).__name__}; allowed: {_ALLOWED}")
    return iter(source)


def _pair(item: Any, place: str, part: str) -> tuple[object, object]:
    """Return the image and the label in an item, None where it has no label."""
    if isinstance(item, Mapping):
        found = [next((each for each in names if each in item), None) for names in (_IMAGE, _LABEL)]
        if found[0] is None or (found[1] is None and part == "train"):
            columns = f"{', '.join(_IMAGE)} and {', '.join(_LABEL)}"
            raise UserError(f"{place} has the columns {', '.join(map(str, item))}; allowed: one of each of {columns}")
        return item[found[0]], item[found[1]] if found[1] else None
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if part != "train" and (is_picture(item) or isinstance(item, np.ndarray | torch.Tensor)):
        return item, None
    size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise UserError(f"{place} is a {type(item).__name__}{size}; allowed: (image, label), or a row with their columns")


def _image(image: Any, place: str, resize: int) -> np.ndarray:
    """Return an image as uint8 `[H, W, 3]`, of the side `resize` where that is not 0."""
    if is_picture(image):
        with damage(place):  # a file's, which is read only now
            return pixels(image, place, resize)
    if not isinstance(image, np.ndarray | torch.Tensor | list | tuple):
        allowed = "an image of Pillow's, an array or a tensor"
        raise UserError(f"the image of {place} is of type {type(image).__name__}; allowed: {allowed}")
    array = array_of(image, place)
    found = pixels_of(array, channels_last(array, place), place)
    if resize and found.shape[:2] != (resize, resize):
        return pixels(pillow().fromarray(found), place, resize)
    return found


def _label(label: Any, place: str) -> int | str | None:
    """Return a label as a number or a name; None where there is none."""
    if label is None or isinstance(label, str):
        return label
    array = array_of(label, place) if isinstance(label, int | np.integer | np.ndarray | torch.Tensor) else None
    if array is None or array.size != 1 or array.dtype.kind not in "ui":
        said = type(label).__name__ if array is None else f"{array.dtype} {list(array.shape)}"
        raise UserError(f"{place} is {brief(label, 60) if array is None else said}; allowed: a whole number or a name")
    return int(array.reshape(-1)[0])
