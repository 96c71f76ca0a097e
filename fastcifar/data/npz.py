"""An .npz of images of any size and their labels, as `np.savez` writes one; nothing that it says is believed."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.data.archives import npz_header, npz_keys, read_npz
from fastcifar.data.arrays import Given, images_from, labeled
from fastcifar.data.converted import converted
from fastcifar.data.dataset import Dataset
from fastcifar.errors import Unequipped, UserError, brief
from fastcifar.machine import free_memory

_KEYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "val": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
"""The names of each split's images and labels, and those that Keras gives them."""
LAYOUT = "train_images, train_labels, test_images and test_labels, or Keras' x_train, y_train, x_test and y_test"


def load_npz(path: Path) -> Dataset:
    """Return the dataset in an .npz: `train_images`, `train_labels`, `test_images`, perhaps `test_labels`, `val_images`
    and `val_labels`, images and labels as `Dataset.from_arrays` takes them, or under the names that Keras gives them;
    perhaps `classes`, names, and `mean` and `std`. Without test images those of `val` are the test, else a fifth of
    each class.

    What takes long to read, as compressed images and floats do, is kept in the user's cache until the file changes.

    Raises UserError for another file and for a damaged one, before memory is taken for what it claims.
    """
    present = npz_keys(path)
    found = {part: next((keys for keys in names if keys[0] in present), None) for part, names in _KEYS.items()}
    found = {part: keys for part, keys in found.items() if keys and npz_header(path, keys[0])[0][:1] != (0,)}
    source = str(path)
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
        source += ", its validation images being the test"
    elif "test" not in found and "train" in found:
        source += ", a fifth of each class being the test"
    for names in _KEYS.values():
        for images, labels in names:
            if labels in present and images not in present:
                raise UserError(f"{path}: {images} is missing, whose labels are {labels}; allowed: both")
    if not found:
        holds = f"holds {', '.join(key[:40] for key in sorted(present)[:9])}" if present else "is damaged, or no .npz"
        raise UserError(f"{path} {holds}; allowed: one with {LAYOUT}")
    shapes, dtypes = zip(*(npz_header(path, keys[0]) for keys in found.values()), strict=True)
    as_in_memory = {*dtypes} == {np.dtype(np.uint8)} and sum(map(math.prod, shapes)) <= path.stat().st_size
    read = partial(_read, path, present, found, source)
    return read() if as_in_memory else converted(str(path), [path], read)


def _read(path: Path, present: set[str], found: dict[str, tuple[str, str]], source: str) -> Dataset:
    """Return the dataset of the splits in `found`, the names of their images and labels."""
    facts = {key: _facts(path, key) for key in ("mean", "std") if key in present}
    classes = _names(path) if "classes" in present else None
    _refuse_too_large(path, [keys[0] for keys in found.values()])
    parts: dict[str, Given] = {}
    for part, (images, labels) in found.items():
        y = _array(path, labels) if labels in present else None
        parts[part] = (_images(path, images), y, f"{path}: {images}", f"{path}: {labels}")
    return labeled(parts, classes, name=str(path), source=source, **facts)


def _images(path: Path, key: str) -> torch.Tensor:
    array = _array(path, key)
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3 and array.shape[1] not in (1, 3):
        return torch.from_numpy(np.ascontiguousarray(array))  # as it is
    return images_from(array, f"{path}: {key}")


def _array(path: Path, key: str) -> np.ndarray:
    """Read an array of numbers or of texts, in the machine's byte order; bytes are texts in UTF-8."""
    shape, dtype = npz_header(path, key)
    if dtype.kind not in "uifUS" or not shape:
        raise UserError(f"{path}: {key} is {dtype} {list(shape)}; allowed: an array of numbers or of texts")
    array = read_npz(path, key, dtype.str[1:], shape, "as its header says")
    if dtype.kind == "S":
        return np.char.decode(array, "utf-8", "replace")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _names(path: Path) -> tuple[str, ...]:
    array = _array(path, "classes")
    if array.dtype.kind != "U" or array.ndim != 1:
        raise UserError(f"{path}: classes is {array.dtype} {list(array.shape)}; allowed: texts, one for each class")
    return tuple(map(str, array))


def _facts(path: Path, key: str) -> Any:
    array = _array(path, key)
    if array.shape != (3,) or array.dtype.kind == "U":
        raise UserError(f"{path}: {key} is {brief(array.tolist(), 60)}; allowed: three numbers, of red, green and blue")
    return array.tolist()


def _refuse_too_large(path: Path, keys: list[str]) -> None:
    """Raise UserError where the images take more memory than there is."""
    headers = [npz_header(path, key) for key in keys]
    need, free = sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers), free_memory()
    if free is not None and need > free:
        allowed = "fewer images, or an HDF5 file, which need not be in memory"
        raise Unequipped(
            f"{path} holds {need / 1e9:.1f} GB of images, and {free / 1e9:.1f} GB are free; allowed: {allowed}"
        )
