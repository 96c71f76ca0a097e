"""SVHN (Netzer et al. 2011), MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from their official files.

The files' sizes and hashes are as published; nobody has compared them with the files for this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from fastcifar.data.converted import converted
from fastcifar.data.dataset import Dataset, Split, fingerprint
from fastcifar.data.files import find_files, verified
from fastcifar.data.idx import read_idx
from fastcifar.data.mat import read_mat
from fastcifar.data.places import contents, reading
from fastcifar.data.releases import FASHION_MNIST, MNIST, SVHN, SVHN_EXTRA, Published
from fastcifar.errors import UserError

_FAR = 12.0
"""By so much, in 0..255, the mean of a set's training images may differ from the published one. Those of other sets
whose files have the same names and sizes differ by more: MNIST's is 33, Fashion-MNIST's 73."""


def load_svhn(
    data_dir: str | PathLike[str] | None = None,
    mirror: str | None = None,
    variant: str = "",
    published: Published | None = None,
) -> Dataset:
    """Load the cropped digits of SVHN, with the variant "extra" its extra images after the training images.

    published: the facts that the files are compared with.

    Raises UserError for bad input or damaged data, and DownloadError if a download fails.
    """
    published = published or (SVHN_EXTRA if variant else SVHN)
    paths = find_files(published, data_dir, mirror)
    with reading(published.homes[0]), contents(paths[0].parent):
        return converted(published.name, paths, partial(_read_svhn, paths, published))


def _read_svhn(paths: Sequence[Path], published: Published) -> Dataset:
    how = verified(paths, published.files)
    images, labels = _empty(published, 32)
    ends = np.cumsum((0, *published.records))
    for path, (start, end) in zip(paths, pairwise(ends), strict=True):
        count = int(end - start)
        found = read_mat(path, {"X": (32, 32, 3, count), "y": (count, 1)})
        pixels, digits = found["X"].T, found["y"].reshape(-1)  # [N, 3, columns, rows]
        if pixels.dtype != np.uint8:
            raise UserError(f"{path}: X is {pixels.dtype}; allowed: uint8")
        _check_labels(path, digits, 1, 10)
        images[start:end] = torch.from_numpy(pixels).permute(0, 3, 2, 1)
        labels[start:end] = torch.from_numpy(digits.astype(np.int64) % 10)  # 10 is the digit 0
        del found, pixels  # before the next part needs memory
    return _dataset(images, labels, published, paths, how)


def _load_idx(published: Published, data_dir: str | PathLike[str] | None = None, mirror: str | None = None) -> Dataset:
    """Load a data set of grey images in IDX files, packed or not, in three equal channels.

    Raises UserError for bad input or damaged data, and DownloadError if a download fails.
    """
    unpacked = [file.filename.removesuffix(".gz") for file in published.files]
    paths = find_files(published, data_dir, mirror, [unpacked])
    with reading(published.homes[0]), contents(paths[0].parent):
        return converted(published.name, paths, partial(_read_idx_files, paths, published))


load_mnist, load_fashion_mnist = partial(_load_idx, MNIST), partial(_load_idx, FASHION_MNIST)


def _read_idx_files(paths: Sequence[Path], published: Published) -> Dataset:
    is_packed = paths[0].name == published.files[0].filename
    how = verified(paths, published.files) if is_packed else "sizes and labels only"
    images, labels = _empty(published, 28)
    ends = np.cumsum((0, *published.records))
    for (start, end), pixels_path, labels_path in zip(pairwise(ends), paths[::2], paths[1::2], strict=True):
        digits = read_idx(labels_path, (int(end - start),))
        _check_labels(labels_path, digits, 0, len(published.classes) - 1)
        labels[start:end] = torch.from_numpy(digits)
        images[start:end] = torch.from_numpy(read_idx(pixels_path, (int(end - start), 28, 28)))[..., None]
    return _dataset(images, labels, published, paths, how)


def _empty(published: Published, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(np.empty((sum(published.records), side, side, 3), dtype=np.uint8))
    return images, torch.empty(len(images), dtype=torch.int64)


def _check_labels(path: Path, labels: np.ndarray, low: int, high: int) -> None:
    """Raise UserError unless all are whole numbers from `low` to `high`."""
    bad = ~((labels >= low) & (labels <= high) & (labels % 1 == 0))
    if bad.any():
        place = int(bad.argmax())
        raise UserError(f"{path} has label {labels[place]:g} at image {place} (from 0); allowed: {low} to {high}")


def _dataset(
    images: torch.Tensor, labels: torch.Tensor, published: Published, paths: Sequence[Path], how: str
) -> Dataset:
    first = sum(published.records[:-1])
    train, test = Split(images[:first], labels[:first]), Split(images[first:], labels[first:])
    measured = train.images[::16].double().mean((0, 1, 2)).tolist()  # so few tell it, in a tenth of a second
    if any(abs(has - said) > _FAR for has, said in zip(measured, published.mean, strict=True)):
        means, allowed = (", ".join(f"{each:.1f}" for each in mean) for mean in (measured, published.mean))
        which = f"the mean of their training images is {means}; allowed: about {allowed}"
        raise UserError(f"the files in {paths[0].parent} are not those of {published.title}: {which}")
    sha256, folder = fingerprint(train, test), str(paths[0].parent)
    how_made = (published.classes, published.mean, published.std, sha256, folder)
    return Dataset(published.name, train, test, *how_made, verified=how)
