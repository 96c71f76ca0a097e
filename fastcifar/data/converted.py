"""Data sets that are slow to read, kept in the user's cache as they are in memory.

A kept set is one file: a line of JSON after its sha256, which has a hash of what the set was made of and says what the
arrays are, and the bytes of the images and labels of each split. It is right if they have the sha256 that the line
says, which a `Dataset` needs anyway; else, and where one of the files has changed, it is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from fastcifar.data.anew import READ_ANEW
from fastcifar.data.archives import fill, state_of
from fastcifar.data.dataset import Dataset, Split, fingerprint
from fastcifar.data.download import user_cache
from fastcifar.errors import Notice, UserError
from fastcifar.output import write_whole

SLOW = 0.7
"""Seconds of processors' time in reading from which on a set is kept."""
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, OverflowError, UserError)
"""What a kept file can raise that is absent, damaged or made of other files."""
_FORMAT = 3
"""Another one where a reader anywhere makes something else of the same files."""
_LINE = 1 << 24
"""Bytes that the line may have."""
_FACTS = ("name", "classes", "mean", "std", "sha256", "source", "verified", "resized")
_SPLITS = ("train", "test", "val")


def converted(
    name: str,
    paths: Sequence[Path],
    read: Callable[[], Dataset],
    made_of: Iterable[object] | None = None,
    how: object = "",
) -> Dataset:
    """Return the dataset that `read` makes of what is at `paths`, from the cache where it was made of the same before.

    name: the data set's, or its path.
    made_of: what the set depends on, such as the names, sizes and times of files; those of `paths` unless given.
    how: in which way it is read, where there are several: of each a set is kept.

    A set that is read quickly is not kept; where the cache cannot be written to, a `Notice` says so.
    """
    places = [path.absolute() for path in paths]
    if made_of is None:
        made_of = [(path.name, *state_of(path.stat())) for path in paths]
    key, where = _hash([_FORMAT, name, how, *places, *made_of]), _hash([how, *places])[:16]
    try:
        kept = user_cache() / "converted" / f"{Path(name).name[:40].replace(':', '-')}-{where}"
    except ModuleNotFoundError:  # platformdirs, without which there is no cache
        return read()
    if not READ_ANEW.get():
        with contextlib.suppress(*DAMAGE), kept.open("rb") as file:
            return _read(file, key)
    start = time.process_time()
    dataset = read()
    if time.process_time() - start >= SLOW:
        try:
            write_whole(kept, lambda path: _write(path, key, dataset))
        except UserError as error:
            warnings.warn(f"{error}; {name} is read from its own files every time", Notice, stacklevel=2)
    return dataset


def _hash(words: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(str, words)).encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, key: str, dataset: Dataset) -> None:
    splits = {name: split for name in _SPLITS if (split := getattr(dataset, name)) is not None}
    line = {
        "key": key,
        "facts": {name: getattr(dataset, name) for name in _FACTS},
        "splits": {name: list(split.images.shape[:3]) for name, split in splits.items()},
    }
    with path.open("wb") as file:
        file.write(_signed(json.dumps(line).encode()))
        for split in splits.values():
            file.write(split.images.numpy().data)
            file.write(split.labels.numpy().data)


def _signed(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode() + b" " + line + b"\n"


def _read(file: BinaryIO, key: str) -> Dataset:
    """Return what `_write` wrote with this key. Raises ValueError, or another error, for anything else."""
    text = file.readline(_LINE)
    line = json.loads(text.partition(b" ")[2])
    if text != _signed(text.partition(b" ")[2].rstrip(b"\n")) or line["key"] != key:
        raise ValueError("made of other files, or damaged")
    shapes, facts = {name: line["splits"][name] for name in _SPLITS if name in line["splits"]}, line["facts"]
    sizes = [count * (height * width * 3 + 8) for count, height, width in shapes.values()]
    here = file.tell()
    if min(map(min, shapes.values())) < 0 or file.seek(0, 2) - here != sum(sizes):
        raise ValueError("its size is wrong")
    file.seek(here)
    splits = {name: _split(file, shape) for name, shape in shapes.items()}
    if fingerprint(*splits.values()) != facts["sha256"]:
        raise ValueError("its bytes are wrong")
    return Dataset(**splits, **facts)


def _split(file: BinaryIO, shape: Sequence[int]) -> Split:
    # numpy asks for huge pages, for which the system may have to move others: half a second more for CIFAR-10's images
    images, labels = torch.empty((*shape, 3), dtype=torch.uint8), torch.empty(shape[0], dtype=torch.int64)
    fill(images.numpy(), file)
    fill(labels.numpy(), file)
    return Split(images, labels)
