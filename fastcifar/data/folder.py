"""A folder of image files by class, read by Pillow.

`train/CLASS/*.png` and `test/CLASS/*.png` (or `training/`, `testing/`), perhaps `val/` (or `valid/`, `validation/`,
`dev/`), which is the test where there is no other; other folders beside them are left out. `test/` may hold images
alone, which are unlabeled then. Where there is no `train/`, the folders are classes, and a fifth of the images of each
is the test. Classes are numbered by their names in alphabetical order, images follow each other by their paths. What is
read is kept in the user's cache as one file, which is read in place of them until one of them changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fastcifar.data.archives import damage
from fastcifar.data.arrays import labeled
from fastcifar.data.cached_arrays import kept, kept_name
from fastcifar.data.dataset import Dataset, channel_statistics
from fastcifar.data.picture import ENDINGS, FORMATS, pillow, pixels
from fastcifar.errors import Notice, UserError, brief
from fastcifar.machine import cores, free_memory

_PLACES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
"""Names of the folders of each split, in whatever case; the first that is there counts."""
_TEST_SHARE = 5
_SEED = 0
"""Never to be changed: with another seed other images would be the test."""


class _File(NamedTuple):
    path: str
    """From the folder on."""
    label: int
    """-1: unlabeled."""
    size: int
    mtime: int


class _Unequal(UserError):
    """Images of different sizes."""


def load_folder(folder: Path, resize: int = 0) -> Dataset:
    """Return the dataset of a folder of images by class, on the CPU.

    resize: side in pixels that images of unequal sizes are brought to; 0: they are refused. Equal ones stay as they
        are.

    Raises UserError for a folder of another form, and for an image that is damaged or of another size, by its name.
    """
    classes, files, how = _look(folder)
    key = (f"{part} {file.path} {file.size} {file.mtime}" for part, found in files.items() for file in found)
    arrays = kept(kept_name(folder, resize), key, lambda: _with_colors(_read(folder, files, resize)))
    resized = int(arrays["resized"][0])
    parts = {}
    for part, found in files.items():
        images = torch.from_numpy(arrays[part])
        parts[part] = (images, [file.label for file in found], f"{folder}/{part}", f"the labels of {folder}/{part}")
    colors = {name: arrays[name].tolist() for name in ("mean", "std")}
    found = labeled(parts, classes, name=str(folder), source=f"{folder}{how}", **colors)
    return dataclasses.replace(found, resized=resized)


def is_folder_of_images(folder: Path) -> bool:
    """Return whether a folder has folders with images in them."""
    return any(next(_images(each), None) for each in _folders(folder))


def _look(folder: Path) -> tuple[list[str], dict[str, list[_File]], str]:
    """Return the classes, the files of each split, and what else is to be said of them."""
    skipped: list[str] = []
    here = {each.name.lower(): each for each in _folders(folder)}
    places = {part: next((here[name] for name in names if name in here), None) for part, names in _PLACES.items()}
    splits = {part: place for part, place in places.items() if place and next(_images(place), None)}
    if "train" in splits and not any(next(_images(each), None) for each in _folders(splits["train"])):
        del splits["train"]  # a class of this name
    how, others = "", []
    if "train" in splits:
        classes = [each.name for each in _folders(splits["train"]) if next(_images(each), None)]
        if "test" not in splits and "val" in splits:
            splits["test"] = splits.pop("val")
            how = f", the images in {splits['test'].name} being the test"
        files = {part: _labeled(folder, place, classes, skipped) for part, place in splits.items()}
        others = [each for each in here.values() if each not in splits.values() and next(_images(each), None)]
    else:
        if part := next((part for part, place in splits.items() if _folders(place)), None):
            raise UserError(f"{folder} holds {splits[part].name}/ and no train/; allowed: both, or folders of classes")
        classes = [each.name for each in _folders(folder) if next(_images(each), None)]
        if classes and not any(_is_image(file.name) for name in classes for file in os.scandir(folder / name)):
            holds = f"{folder} holds {brief(classes)}, folders of folders of images, and no train/"
            raise UserError(f"{holds}; allowed: train/ and test/, or a folder further down, as {folder / classes[0]}")
        files = {"train": _labeled(folder, folder, classes, skipped)}
    if len(classes) < 2:
        holds = f"images of one class, {classes[0]!r}" if classes else "no folders of images by class"
        raise UserError(f"{folder} holds {holds}; allowed: train/CLASS/*.png, or CLASS/*.png, of two classes or more")
    if "test" not in files:
        files = _split(files["train"])
        how = f", a fifth of each class being the test (seed {_SEED})"
    if others:
        names = ", ".join(f"{each.name}/" for each in others)
        known = ", ".join(name for names in _PLACES.values() for name in names)
        warnings.warn(f"{folder}: left out beside train/: {names}; known are {known}", Notice, stacklevel=2)
    if skipped:
        count = f"{len(skipped):,} file{'s are' if len(skipped) > 1 else ' is'}"
        warnings.warn(f"{folder}: {count} left out as no images, as {skipped[0]}", Notice, stacklevel=2)
    return classes, {part: files[part] for part in ("train", "test", "val") if part in files}, how


def _labeled(folder: Path, place: Path, classes: Sequence[str], skipped: list[str]) -> list[_File]:
    """Return the files of a split by their paths, those of `classes` with their labels, and add others to `skipped`."""
    folders = {each.name: each for each in _folders(place)}
    others = [name for name in folders if name not in classes and next(_images(folders[name]), None)]
    is_unlabeled = (
        place.name.lower() in _PLACES["test"] and not any(name in classes for name in folders) and len(others) <= 1
    )
    if others and not is_unlabeled:
        allowed = f"{brief(list(classes))}, those of train, or images alone"
        raise UserError(f"{place} holds {others[0]!r}, which is no class; allowed: {allowed}")
    found: list[_File] = []
    held = [(folders[name], label) for label, name in enumerate(classes) if name in folders]
    for inside, label in [(place, -1)] if is_unlabeled else held:
        for entry in _walk(inside):
            path = entry.path.removeprefix(f"{folder}{os.sep}").replace(os.sep, "/")
            if _is_image(entry.name):
                stat = entry.stat()
                found.append(_File(path, label, stat.st_size, stat.st_mtime_ns))
            else:
                skipped.append(path)
    if not is_unlabeled:  # files beside the folders
        skipped += [entry.name for entry in os.scandir(place) if entry.is_file()]
    return found


def _split(files: Sequence[_File]) -> dict[str, list[_File]]:
    """Return the files with a fifth of each class as the test: by a hash of their paths, so that a new image moves no
    other but one."""
    tests: set[str] = set()
    for label in {file.label for file in files}:
        paths = [file.path for file in files if file.label == label]
        paths.sort(key=lambda path: hashlib.sha256(f"{_SEED} {path}".encode("utf-8", "surrogateescape")).digest())
        tests |= {*paths[: round(len(paths) / _TEST_SHARE)]}
    if not tests:
        raise UserError("no class has more than two images, of which a fifth is the test; allowed: train/ and test/")
    return {
        "train": [file for file in files if file.path not in tests],
        "test": [file for file in files if file.path in tests],
    }


def _folders(place: Path) -> list[Path]:
    """Return the folders in a folder by name, links to folders too, hidden ones left out."""
    with os.scandir(place) as entries:
        found = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(found, key=lambda path: path.name)


def _walk(place: Path) -> Iterator[os.DirEntry[str]]:
    """Give the files below a folder by path; links to folders further down are not followed, which may lead around."""
    with os.scandir(place) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith("."):
                yield from _walk(Path(entry.path))
        elif entry.is_file():
            yield entry


def _images(place: Path) -> Iterator[str]:
    return (entry.path for entry in _walk(place) if _is_image(entry.name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def _read(folder: Path, files: dict[str, list[_File]], resize: int) -> dict[str, np.ndarray]:
    """Return the images of each split, uint8 `[N, H, W, 3]`, and as "resized" the side that they were brought to
    or 0."""
    side = 0
    try:
        arrays = _read_all(folder, files, side)
    except _Unequal:
        if not resize:
            raise
        side = resize
        arrays = _read_all(folder, files, side)
    return {**arrays, "resized": np.array([side])}


def _with_colors(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with mean and deviation of the training images, which take as long to measure as to read."""
    mean, std = channel_statistics(torch.from_numpy(arrays["train"]))
    return {**arrays, "mean": np.array(mean), "std": np.array(std)}


def _read_all(folder: Path, files: dict[str, list[_File]], side: int) -> dict[str, np.ndarray]:
    image = pillow()
    names = [(part, row, file.path) for part, found in files.items() for row, file in enumerate(found)]

    def read(path: str) -> np.ndarray:
        where = folder / path
        with damage(str(where)), image.open(where, formats=tuple(FORMATS)) as picture:
            return pixels(picture, str(where), side)

    first = read(names[0][2])
    need, free = len(names) * first.nbytes, free_memory()
    if free is not None and need > free:
        allowed = "fewer or smaller images, or an HDF5 file, which need not be in memory"
        raise UserError(f"{folder}: its images take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; {allowed}")
    arrays = {part: np.empty((len(found), *first.shape), dtype=np.uint8) for part, found in files.items()}

    def put(name: tuple[str, int, str]) -> None:
        part, row, path = name
        found = read(path)
        if found.shape != first.shape:
            here, there = (f"{height} x {width}" for height, width, _ in (found.shape, first.shape))
            allowed = f"{there}, as {names[0][2]}, or --resize N, which brings all images to N x N"
            raise _Unequal(f"{folder / path} is {here} pixels; allowed: {allowed}")
        arrays[part][row] = found

    pool = ThreadPoolExecutor(max(1, int(cores())))
    try:
        for _ in pool.map(put, names):
            pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return arrays
