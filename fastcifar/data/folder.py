"""A folder of image files by class, read by Pillow.

`train/CLASS/*.png` and `test/CLASS/*.png` (or `training/`, `testing/`), perhaps `val/` (or `valid/`, `validation/`,
`dev/`), which is the test where there is no other; other folders beside them are left out. `test/` may hold images
alone, which are unlabeled then. Where there is no `train/`, the folders are classes, and a fifth of the images of each
is the test. Classes are numbered by their names in alphabetical order, images follow each other by their paths. What
takes long to read is kept in the user's cache as one file, which is read in place of them until one of them changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from fastcifar.data.archives import damage, state_of
from fastcifar.data.arrays import labeled
from fastcifar.data.converted import converted
from fastcifar.data.dataset import Dataset
from fastcifar.data.picture import ENDINGS, FORMATS, pillow, pixels
from fastcifar.errors import Notice, Unequipped, UserError, brief
from fastcifar.machine import cores, free_memory

_PLACES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
"""Names of the folders of each split, in whatever case; the first that is there counts."""
_TEST_SHARE = 5
_SEED = 0
"""Never to be changed: with another seed other images would be the test."""


_Files = dict[str, int]
"""The paths of a split's files from the folder on, and their labels, -1: unlabeled. A hundred thousand tuples take
longer to make than so many files to look at: Python's garbage collector goes through them again and again."""


class _Unequal(UserError):
    """Images of different sizes."""


def load_folder(folder: Path, resize: int = 0) -> Dataset:
    """Return the dataset of a folder of images by class, on the CPU.

    resize: side in pixels that images of unequal sizes are brought to; 0: they are refused. Equal ones stay as they
        are.

    Raises UserError for a folder of another form, and for an image that is damaged or of another size, by its name.
    """
    classes, files, how, made_of = _look(folder)

    def read() -> Dataset:
        arrays, resized = _read(folder, files, resize)
        parts = {}
        for part, found in files.items():
            called = f"{folder}/{part}", f"the labels of {folder}/{part}"
            parts[part] = (torch.from_numpy(arrays[part]), list(found.values()), *called)
        dataset = labeled(parts, classes, name=str(folder), source=f"{folder}{how}")
        return dataclasses.replace(dataset, resized=resized)

    return converted(str(folder), [folder], read, made_of, resize)


def load_unlabeled(folder: Path, classes: Sequence[str], resize: int = 0) -> Dataset:
    """Return the images in a folder, by their names, as a set of `classes` to evaluate on, without labels.

    resize: as `load_folder` takes it. Raises UserError for an image that is damaged or of another size, by its name.
    """
    above = f"{folder}{os.sep}"
    paths = [each.path.removeprefix(above).replace(os.sep, "/") for each in _walk(folder) if _is_image(each)]
    arrays, resized = _read(folder, {"test": dict.fromkeys(paths, -1)}, resize)
    parts = {"test": (torch.from_numpy(arrays["test"]), None, str(folder), f"the labels of {folder}")}
    return dataclasses.replace(labeled(parts, classes, name=str(folder), source=str(folder)), resized=resized)


def holds_images_alone(folder: Path) -> bool:
    """Return whether a folder has images in it and no folders of images."""
    return folder.is_dir() and not is_folder_of_images(folder) and _has_images(folder)


def is_folder_of_images(folder: Path) -> bool:
    """Return whether a folder has folders with images in them."""
    return any(_has_images(each) for each in _folders(folder))


def _look(folder: Path) -> tuple[list[str], dict[str, _Files], str, list[str]]:
    """Return the classes, the files of each split, what else is to be said of them, and of each file its path, size and
    time of change."""
    skipped: list[str] = []
    made_of: list[str] = []
    here = {each.name.lower(): each for each in _folders(folder)}
    places = {part: next((here[name] for name in names if name in here), None) for part, names in _PLACES.items()}
    splits = {part: place for part, place in places.items() if place and _has_images(place)}
    if "train" in splits and not any(_has_images(each) for each in _folders(splits["train"])):
        del splits["train"]  # a class of this name
    how, others = "", []
    if "train" in splits:
        classes = [each.name for each in _folders(splits["train"]) if _has_images(each)]
        if "test" not in splits and "val" in splits:
            splits["test"] = splits.pop("val")
            how = f", the images in {splits['test'].name} being the test"
        files = {part: _labeled(folder, place, classes, skipped, made_of) for part, place in splits.items()}
        others = [each for each in _folders(folder) if each not in splits.values() and _has_images(each)]
    else:
        if part := next((part for part, place in splits.items() if _folders(place)), None):
            raise UserError(f"{folder} holds {splits[part].name}/ and no train/; allowed: both, or folders of classes")
        classes = [each.name for each in _folders(folder) if _has_images(each)]
        if classes and not any(_is_image(file) for name in classes for file in _entries(folder / name)):
            holds = f"{folder} holds {brief(classes)}, folders of folders of images, and no train/"
            raise UserError(f"{holds}; allowed: train/ and test/, or a folder further down, as {folder / classes[0]}")
        files = {"train": _labeled(folder, folder, classes, skipped, made_of)}
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
        warnings.warn(
            f"{folder}: {count} left out, no images or in no class's folder, as {skipped[0]}", Notice, stacklevel=2
        )
    return classes, {part: files[part] for part in ("train", "test", "val") if part in files}, how, made_of


def _labeled(folder: Path, place: Path, classes: Sequence[str], skipped: list[str], made_of: list[str]) -> _Files:
    """Return the files of a split by their paths, those of `classes` with their labels. Add their paths, sizes and
    times of change to `made_of`, and other files to `skipped`."""
    folders = {each.name: each for each in _folders(place)}
    others = [name for name in folders if name not in classes and _has_images(folders[name])]
    known = {name.lower() for name in classes}  # Cats is cats, written in another way
    has_classes = any(name.lower() in known for name in folders)
    is_unlabeled = place.name.lower() in _PLACES["test"] and not has_classes and len(others) <= 1
    if others and not is_unlabeled:
        allowed = f"{brief(list(classes))}, those of train, or images alone"
        raise UserError(f"{place} holds {others[0]!r}, which is no class; allowed: {allowed}")
    bare = {name: next(_walk(folders[name]), None) for name in folders if name not in classes and name not in others}
    if files := [f"{name}/{file.name}" for name, file in bare.items() if file]:
        said = f"folders without an image are no classes, as that of {files[0]}; read are {', '.join(ENDINGS)}"
        warnings.warn(f"{place}: {said}", Notice, stacklevel=3)
    found: _Files = {}
    above = f"{folder}{os.sep}"
    held = [(folders[name], label) for label, name in enumerate(classes) if name in folders]
    for inside, label in [(place, -1)] if is_unlabeled else held:
        for entry in _walk(inside):
            path = entry.path.removeprefix(above).replace(os.sep, "/")
            if _is_image(entry):
                stat = entry.stat()
                found[path] = label
                made_of.append(f"{path} {state_of(stat)}")
            else:
                skipped.append(path)
    if not is_unlabeled:  # files beside the folders
        skipped += [entry.path.removeprefix(above) for entry in _entries(place) if entry.is_file()]
    if classes and not found:
        raise UserError(
            f"{place} holds no images in folders of classes; allowed: CLASS/*.png, of {brief(list(classes))}"
        )
    return found


def _entries(place: Path) -> list[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return list(entries)


def _split(files: _Files) -> dict[str, _Files]:
    """Return the files with a fifth of each class as the test: by a hash of their paths, so that a new image moves no
    other but one."""
    tests: set[str] = set()
    by_class: Mapping[int, list[str]] = defaultdict(list)
    for path, label in files.items():
        by_class[label].append(path)
    for paths in by_class.values():
        paths.sort(key=lambda path: hashlib.sha256(f"{_SEED} {path}".encode("utf-8", "surrogateescape")).digest())
        tests |= {*paths[: round(len(paths) / _TEST_SHARE)]}
    if not tests:
        raise UserError("no class has more than two images, of which a fifth is the test; allowed: train/ and test/")
    return {
        "train": {path: label for path, label in files.items() if path not in tests},
        "test": {path: label for path, label in files.items() if path in tests},
    }


def _folders(place: Path) -> list[Path]:
    """Return the folders in a folder by name, links to folders too, hidden ones left out."""
    found = [Path(entry.path) for entry in _entries(place) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(found, key=lambda path: path.name)


def _walk(place: Path, in_order: bool = True) -> Iterator[os.DirEntry[str]]:
    """Give what is below a folder and is none itself, by path if `in_order`: files, and links that are not followed, to
    folders further down, which may lead around, and to nothing."""
    with os.scandir(place) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name) if in_order else entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith("."):
                    yield from _walk(Path(entry.path), in_order)
            elif not (entry.is_dir() and entry.name.startswith(".")):
                yield entry


def _has_images(place: Path) -> bool:
    return any(_is_image(entry) for entry in _walk(place, in_order=False))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(ENDINGS) and not entry.name.startswith(".") and entry.is_file()


def _read(folder: Path, files: dict[str, _Files], resize: int) -> tuple[dict[str, np.ndarray], int]:
    """Return the images of each split, uint8 `[N, H, W, 3]`, and the side that they were brought to or 0."""
    try:
        return _read_all(folder, files, 0), 0
    except _Unequal:
        if not resize:
            raise
        return _read_all(folder, files, resize), resize


def _read_all(folder: Path, files: dict[str, _Files], side: int) -> dict[str, np.ndarray]:
    image = pillow()
    names = [(part, row, path) for part, found in files.items() for row, path in enumerate(found)]

    def read(path: str) -> np.ndarray:
        where = folder / path
        with damage(str(where)), image.open(where, formats=tuple(FORMATS)) as picture:
            return pixels(picture, str(where), side)

    with warnings.catch_warnings():  # of many pixels: pixels() has a lower limit
        warnings.simplefilter("ignore", image.DecompressionBombWarning)
        first = read(names[0][2])
    need, free = len(names) * first.nbytes, free_memory()
    if free is not None and need > free:
        allowed = "fewer or smaller images, or an HDF5 file, which need not be in memory"
        raise Unequipped(f"{folder}: its images take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; {allowed}")
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
        with warnings.catch_warnings():  # pixels() has a lower limit than that which Pillow warns of
            warnings.simplefilter("ignore", image.DecompressionBombWarning)
            for _ in pool.map(put, names):
                pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return arrays
