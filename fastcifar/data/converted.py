"""Data sets whose files are slow to read, kept in the user's cache as they are in memory.

A kept set is one file: a line of JSON, which says of what files it was made and what the arrays are, and the bytes of
the images and labels of each split. It is right if they have the sha256 that the line says, which a `Dataset` needs
anyway; else, and where one of the files has changed, it is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fastcifar.data.anew import READ_ANEW
from fastcifar.data.archives import fill
from fastcifar.data.dataset import Dataset, Split, fingerprint
from fastcifar.data.download import user_cache
from fastcifar.errors import Notice, UserError
from fastcifar.output import write_whole

SLOW = 0.7
"""Seconds of a processor's time in reading from which on a set is kept."""
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError, OverflowError, UserError)
"""What a kept file can raise that is absent, damaged or made of other files."""
_FORMAT = 1
_LINE = 1 << 16
"""Bytes that the line may have."""


def converted(name: str, paths: Sequence[Path], read: Callable[[], Dataset]) -> Dataset:
    """Return the dataset that `read` makes of the files at `paths`, from the cache where it was made of them before.

    name: the data set's.

    The files count as the same where their paths, sizes and times of change are. A set that is read
    quickly is not kept; where the cache cannot be written to, a `Notice` says so.
    """
    facts = [(path.absolute(), path.stat()) for path in paths]
    key = [_FORMAT, name, *([str(path), stat.st_size, stat.st_mtime_ns] for path, stat in facts)]
    try:
        folder = user_cache() / "converted"
    except ModuleNotFoundError:  # platformdirs, without which there is no cache
        return read()
    where = hashlib.sha256(json.dumps([str(path) for path, _ in facts]).encode()).hexdigest()[:16]
    kept = folder / f"{name.replace(':', '-')}-{where}"
    if not READ_ANEW.get():
        with contextlib.suppress(*_DAMAGE), kept.open("rb") as file:
            return _read(file, key)
    start = time.thread_time()
    dataset = read()
    if time.thread_time() - start >= SLOW:
        try:
            write_whole(kept, lambda path: _write(path, key, dataset))
        except UserError as error:
            warnings.warn(f"{error}; {name} is read from its own files every time", Notice, stacklevel=2)
    return dataset


def _write(path: Path, key: list[Any], dataset: Dataset) -> None:
    names = "name", "classes", "mean", "std", "sha256", "source", "verified"
    splits = dataset.train, dataset.test
    line = {
        "key": key,
        "facts": {name: getattr(dataset, name) for name in names},
        "splits": [list(split.images.shape[:3]) for split in splits],
    }
    with path.open("wb") as file:
        file.write(json.dumps(line).encode() + b"\n")
        for split in splits:
            file.write(split.images.numpy().data)
            file.write(split.labels.numpy().data)


def _read(file: BinaryIO, key: list[Any]) -> Dataset:
    """Return what `_write` wrote with this key. Raises ValueError, or another error, for anything else."""
    line = json.loads(file.readline(_LINE))
    if line["key"] != key:
        raise ValueError("made of other files")
    (train, test), facts = line["splits"], line["facts"]
    sizes = [count * (height * width * 3 + 8) for count, height, width in (train, test)]
    here = file.tell()
    if min(*train, *test) < 0 or file.seek(0, 2) - here != sum(sizes):
        raise ValueError("its size is wrong")
    file.seek(here)
    train, test = _split(file, train), _split(file, test)
    if fingerprint(train, test) != facts["sha256"]:
        raise ValueError("its bytes are wrong")
    return Dataset(train=train, test=test, **facts)


def _split(file: BinaryIO, shape: Sequence[int]) -> Split:
    images, labels = np.empty((*shape, 3), np.uint8), np.empty(shape[0], np.int64)
    fill(images, file)
    fill(labels, file)
    return Split(torch.from_numpy(images), torch.from_numpy(labels))
