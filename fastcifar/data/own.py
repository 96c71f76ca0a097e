"""The data set at a path of the user's own: what it is, is told by what is there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastcifar.catalogue import FILES, FORMS
from fastcifar.data.dataset import Dataset
from fastcifar.data.folder import is_folder_of_images, load_folder
from fastcifar.data.npz import load_npz
from fastcifar.data.places import contents
from fastcifar.data.releases import CIFAR10, CIFAR100
from fastcifar.errors import UserError


def load_own(data_dir: Path, resize: int = 0) -> Dataset:
    """Return the dataset at a path: a folder of images by class (see `folder.py`), an .npz (`npz.py`), an HDF5 file
    (`hdf5.py`), TFRecords (`tfrecord.py`), or a folder with one of these files.

    resize: side in pixels that image files of unequal sizes are brought to; 0: they are refused.

    Raises UserError for anything else, and for what is damaged.
    """
    try:
        read = _reader(data_dir, resize)
        with contents(data_dir):
            return read()
    except UserError as error:  # of what is in it
        if str(data_dir) not in (said := str(error)):
            error.args = (f"{data_dir}: {said}", *error.args[1:])
        raise
    except OSError as error:
        raise UserError(f"cannot read {error.filename or data_dir}: {error.strerror or error}") from error


def _reader(path: Path, resize: int) -> Callable[[], Dataset]:
    """Return what reads the data set at `path`."""
    if not path.exists():
        moved = "of a saved run, --data-dir PATH says where its images are now"
        raise UserError(f"the data set {path} does not exist; allowed: {FORMS}; {moved}")
    _refuse_release(path)
    if not path.is_dir():
        return _of_file(path)
    if is_folder_of_images(path):
        return lambda: load_folder(path, resize)
    files = sorted(each for each in path.iterdir() if each.suffix.lower() in FILES and not each.name.startswith("."))
    if len({each.suffix.lower() for each in files}) == 1 and (len(files) == 1 or _is_records(files[0])):
        return _of_file(files[0] if len(files) == 1 else path)
    holds = f"holds {', '.join(each.name for each in files[:9])}" if files else "holds no images by class"
    raise UserError(f"{path} {holds}; allowed: {FORMS}, or a folder with one such file")


def _of_file(path: Path) -> Callable[[], Dataset]:
    """Return what reads a file, or a folder of TFRecords."""
    ending = path.suffix.lower()
    if ending == ".npz":
        return lambda: load_npz(path)
    if ending in (".h5", ".hdf5"):
        return lambda: _function("hdf5", "load_hdf5")(path)
    if path.is_dir() or _is_records(path):
        return lambda: _function("tfrecord", "load_tfrecord")(path)
    raise UserError(f"{path} is no data set; allowed: {FORMS}")


def _function(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"fastcifar.data.{module}"), name)


def _is_records(path: Path) -> bool:
    return path.suffix.lower() in (".tfrecord", ".tfrecords")


def _refuse_release(path: Path) -> None:
    """Raise UserError for a place that holds a set of the catalogue in its official form, which is read by its name."""
    for release in (CIFAR10, CIFAR100):
        for archive in release.archives:
            names = {archive.folder, archive.filename}
            held = path.is_dir() and (
                any((path / name).exists() for name in names)
                or all((path / name).is_file() for name in archive.batches)
            )
            if path.name in names or held:
                place = path.parent if path.name == archive.folder else path
                allowed = f"--dataset {release.name} --data-dir {place}"
                raise UserError(f"{path} is {release.title} as it is published; allowed: {allowed}")
