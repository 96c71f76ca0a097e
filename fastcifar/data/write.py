"""A data set written to files of another form, whole or not at all, and read back before they are in their place."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcifar.data.dataset import Dataset, Split
from fastcifar.data.load import load_dataset
from fastcifar.data.tfrecord import ENDING, FACTS, SPLITS, facts_of, read_records, write_records
from fastcifar.errors import UserError, brief
from fastcifar.locks import claimed
from fastcifar.output import PARTIAL, made, read_json

_AT_ONCE = 1 << 26
"""Bytes of images that are written, or compared, at once."""
_MOST_CLASSES = 4_000
"""Names that an attribute of an HDF5 file may hold: it has room for 64 KiB, 16 bytes a name."""
_OLD = ".replaced-"
"""The beginning of a folder's name while another takes its place."""
_LOCK = ".lock"
_ROOM = 1 << 20
"""Bytes of files beside those of images and labels."""


def convert(dataset: Dataset, out: Path, form: str) -> int:
    """Write a dataset to `out`, compare every byte of what is read there again, and return the number of bytes written.

    form: "npz" or "hdf5", a file; "tfrecord", a folder of record files.

    What was at `out` is replaced. Raises UserError where that cannot be done or something reads as other than it was
    written; then what was there stays, and nothing else does.
    """
    splits = _splits(dataset)
    need = _ROOM + sum(split.nbytes + 128 * len(split) for split in splits.values())
    there = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < need:
        raise UserError(
            f"{out} needs {need / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free in {there}; allowed: less"
        )
    if form == "tfrecord":
        strange = [path.name for path in out.iterdir() if not _is_ours(path.name)] if out.is_dir() else []
        if strange:
            allowed = "an empty folder, or one with nothing but a set that was written there"
            raise UserError(f"{out} holds {brief(min(strange), 60)}; allowed: {allowed}")
        with _beside(out) as path:
            _write_folder(dataset, splits, path)
        return sum(each.stat().st_size for each in out.iterdir())
    with _beside(out) as path:
        {"npz": _write_npz, "hdf5": _write_hdf5}[form](dataset, splits, path)
        _compare(dataset, load_dataset(str(path)), out)
    return out.stat().st_size


def _is_ours(name: str) -> bool:
    """Return whether a file in a folder of records is one of those that are written there."""
    return name in {FACTS, *(f"{split}{ENDING}" for split in SPLITS)} or name.startswith(PARTIAL)


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Give a path beside `out` to write a file or a folder to; at the end put it in the place of `out`, with its
    permissions. Where the block fails, `out` stays as it was. What conversions that were killed left in the folder of
    `out` is removed.

    Raises UserError where that cannot be done, or another process writes to `out`.
    """
    said, out = out, out.resolve()  # what a link leads to is replaced
    part, old = out.with_name(f"{PARTIAL}{out.name}"), out.with_name(f"{_OLD}{out.name}")
    try:
        with made(out.parent), claimed(_lock(part)) as is_ours:
            if not is_ours:
                raise UserError(f"another process writes to {said}; allowed: to wait until it is done")
            if old.exists() and not out.exists():  # a process was killed between the two renames below
                old.rename(out)
            for leftover in (part, old):
                _remove(leftover)
            _remove_leftovers(out.parent)
            try:
                yield part
                for path in part.iterdir() if part.is_dir() else (part,):
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
                if out.exists():
                    part.chmod(stat.S_IMODE(out.stat().st_mode))
                if part.is_dir() and out.exists():
                    out.rename(old)
                try:
                    part.replace(out)
                except OSError:
                    if old.exists():
                        old.rename(out)
                    raise
                _remove(old)
            finally:
                _remove(part)
    except OSError as error:
        raise UserError(f"cannot write {said}: {error.strerror or error}") from None
    except UserError as error:  # of reading it back
        text = str(error).replace(str(_lock(part)), str(said))
        raise UserError(text.replace(str(part), str(said))) from None


def _lock(part: Path) -> Path:
    return part.with_name(f"{part.name}{_LOCK}")


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed were writing: what has a lock that nobody holds."""
    for lock in folder.glob(f"{PARTIAL}*{_LOCK}"):
        with contextlib.suppress(UserError), claimed(lock) as is_free:
            if is_free:
                _remove(lock.with_name(lock.name.removesuffix(_LOCK)))


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, if it is there."""
    with contextlib.suppress(OSError):  # a folder that became read-only meanwhile
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _splits(dataset: Dataset) -> dict[str, Split]:
    """Return the splits that hold images, by name."""
    splits = {name: getattr(dataset, name) for name in SPLITS}
    return {name: split for name, split in splits.items() if split is not None and len(split)}


def _write_npz(dataset: Dataset, splits: dict[str, Split], path: Path) -> None:
    arrays: dict[str, Any] = {}
    for name, split in splits.items():
        arrays |= {f"{name}_images": split.images.numpy(), f"{name}_labels": split.labels.numpy()}
    arrays |= {"classes": np.array(dataset.classes), "mean": np.array(dataset.mean), "std": np.array(dataset.std)}
    with path.open("wb") as file:
        np.savez(file, **arrays)


class _Output(io.FileIO):
    """A file that takes every write: after one that fails all are dropped, and `failure` is the reason.

    HDF5 is given one because it cannot close a file that it cannot write to.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        content, done = memoryview(data).cast("B"), 0
        try:
            while done < len(content) and self.failure is None:
                done += super().write(content[done:])
        except OSError as error:
            self.failure = error
        return len(content)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size) if self.failure is None else 0
        except OSError as error:
            self.failure = error
            return 0


def _write_hdf5(dataset: Dataset, splits: dict[str, Split], path: Path) -> None:
    with _Output(path, "w+") as output:
        try:
            _fill_hdf5(dataset, splits, output, path)
        finally:
            if output.failure:
                raise output.failure


def _fill_hdf5(dataset: Dataset, splits: dict[str, Split], output: _Output, path: Path) -> None:
    import h5py

    with h5py.File(output, "w") as file:
        for name, split in splits.items():
            stored, place = file.create_dataset(f"images-{name}", tuple(split.images.shape), np.uint8), 0
            for piece in _pieces(split.images):
                stored[place : place + len(piece)] = piece.numpy()
                place += len(piece)
            file[f"labels-{name}"] = split.labels.numpy()
        try:
            classes = np.array(dataset.classes, dtype=h5py.string_dtype())
            if len(classes) <= _MOST_CLASSES:
                file.attrs["classes"] = classes
            else:
                file["classes"] = classes
        except ValueError as error:  # a name with a zero, or of no characters that UTF-8 has
            raise UserError(f"cannot write the classes' names to {path}: {error}; allowed: others") from None
        file.attrs["mean"], file.attrs["std"] = dataset.mean, dataset.std


def _write_folder(dataset: Dataset, splits: dict[str, Split], out: Path) -> None:
    facts = facts_of(dataset)

    def write_split(split: Split, path: Path) -> None:
        write_records(path, split)
        _compare_splits(split, read_records(path, facts["image_shape"]), path)

    def write_facts(path: Path) -> None:
        path.write_text(json.dumps(facts, indent=2) + "\n")
        if read_json(path) != facts:
            raise UserError(f"{path} reads as other facts than were written; allowed: names that JSON can hold")

    out.mkdir()
    for name, split in splits.items():
        write_split(split, out / f"{name}{ENDING}")
    write_facts(out / FACTS)


def _compare(dataset: Dataset, found: Dataset, out: Path) -> None:
    """Raise UserError unless two datasets are the same to the last byte."""
    splits, others = _splits(dataset), _splits(found)
    if splits.keys() != others.keys():
        raise UserError(f"{out} would hold the splits {', '.join(others)}; allowed: {', '.join(splits)}")
    for name, split in splits.items():
        _compare_splits(split, others[name], out)
    for name in ("classes", "mean", "std"):
        if getattr(dataset, name) != getattr(found, name):
            raise UserError(f"{out} would not hold {name} as they are, and is not written; allowed: another form")


def _compare_splits(split: Split, found: Split, path: Path) -> None:
    is_same = split.images.shape == found.images.shape and torch.equal(split.labels, found.labels)
    pairs = zip(_pieces(split.images), _pieces(found.images), strict=True)
    if not (is_same and all(torch.equal(piece, other) for piece, other in pairs)):
        raise UserError(f"{path} reads as other images or labels than were written; allowed: a sound disk")


def _pieces(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give the images in order, some at once."""
    at_once = max(1, _AT_ONCE * len(images) // max(1, images.nbytes))
    return (images[start : start + at_once] for start in range(0, len(images), at_once))
