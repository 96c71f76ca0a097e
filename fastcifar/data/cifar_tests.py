"""Test sets for networks that are trained on CIFAR-10: CIFAR-10.1 (Recht et al. 2018) and CIFAR-10-C (Hendrycks and
Dietterich 2019).

The files' sizes and hashes are as published; nobody has compared them with the files for this project.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from fastcifar.catalogue import CORRUPTIONS, EXTRA_CORRUPTIONS
from fastcifar.data.anew import READ_ANEW
from fastcifar.data.archives import damage, read_npy, read_tar
from fastcifar.data.dataset import Dataset, Split, fingerprint
from fastcifar.data.files import find_files, is_official, verified
from fastcifar.data.places import contents, reading
from fastcifar.data.releases import CIFAR10_1, CIFAR10_C, Published
from fastcifar.errors import UserError

_SEVERITIES = 5
_LABELS = "labels.npy"
_ROOM = 1 << 20


def load_cifar10_1(
    data_dir: str | PathLike[str] | None = None,
    mirror: str | None = None,
    variant: str = "",
    published: Published | None = None,
) -> Dataset:
    """Load CIFAR-10.1, version 6 or that of the variant: test images alone.

    published: the facts that the files are compared with.

    Raises UserError for bad input or damaged data, and DownloadError if a download fails.
    """
    published = published or CIFAR10_1[variant]
    paths = find_files(published, data_dir, mirror)
    count = published.records[-1]
    with reading(published.homes[0]), contents(paths[0].parent), contextlib.ExitStack() as stack:
        how = verified(paths, published.files)
        files = [(stack.enter_context(path.open("rb")), path.stat().st_size, str(path)) for path in paths]
        images = _images(*files[0], count)
        labels = _labels(*files[1], count)
    return _dataset(images, labels, published, str(paths[0].parent), how)


def load_cifar10_c(
    data_dir: str | PathLike[str] | None = None,
    mirror: str | None = None,
    variant: str = "",
    published: Published = CIFAR10_C,
) -> Dataset:
    """Load the test images of CIFAR-10-C with one corruption at one severity, such as the variant "fog-3".

    They are read from `CIFAR-10-C.tar` itself, or from the folder that it unpacks to.
    published: the facts that the files are compared with.

    Raises UserError for bad input or damaged data, and DownloadError if a download fails.
    """
    if not variant:
        name = published.name
        raise UserError(f"{name} is 19 corruptions at 5 severities; allowed: one of them, as in {name}:fog-3")
    corruption, _, severity = variant.rpartition("-")
    names = [f"{corruption.replace('-', '_')}.npy", _LABELS]
    paths = find_files(published, data_dir, mirror, [names])
    count = published.records[-1]
    rows = slice((int(severity) - 1) * count, int(severity) * count)
    with reading(published.homes[0]), contents(paths[0].parent):
        how, found = _how(paths, published), {}
        with damage(str(paths[0])):
            for name, size, where, file in _unpacked(paths) if len(paths) > 1 else _packed(paths[0], names, published):
                read = _images if name == names[0] else _labels
                found[name] = read(file, size, where, _SEVERITIES * count, rows)
        if lacking := [name for name in names if name not in found]:
            raise UserError(f"{paths[0]} lacks {' and '.join(lacking)}")
    return _dataset(found[names[0]], found[names[1]], published, str(paths[0].parent), how)


def look_at_cifar10_c(
    data_dir: str | PathLike[str] | None = None, mirror: str | None = None, published: Published = CIFAR10_C
) -> tuple[str, str, list[str], list[str]]:
    """Read all of CIFAR-10-C, and return where it is, how it was verified, and which corruptions it has and lacks.

    Raises UserError for bad input or damaged data, and DownloadError if a download fails.
    """
    names = {f"{each.replace('-', '_')}.npy": each for each in CORRUPTIONS + EXTRA_CORRUPTIONS}
    paths = find_files(published, data_dir, mirror, [[name, _LABELS] for name in names])
    count, seen = _SEVERITIES * published.records[-1], set()
    with reading(published.homes[0]), contents(paths[0].parent):
        how = _how(paths, published)
        if len(paths) > 1:
            here = [paths[0].parent / name for name in (*names, _LABELS)]
            files = _unpacked([path for path in here if path.is_file()])
        else:
            files = _packed(paths[0], (*names, _LABELS), published)
        with damage(str(paths[0])):
            for name, size, where, file in files:
                seen.add(name)
                if name != _LABELS:
                    _images(file, size, where, count)
                    continue
                labels = _labels(file, size, where, count).reshape(_SEVERITIES, -1)
                if (labels != labels[0]).any():
                    raise UserError(f"{where} has other labels at one severity than at another; allowed: the same")
        if _LABELS not in seen:
            raise UserError(f"{paths[0]} lacks {_LABELS}")
    found, lacking = ([each for name, each in names.items() if (name in seen) == there] for there in (True, False))
    return str(paths[0].parent), how, found, lacking


def _how(paths: Sequence[Path], published: Published) -> str:
    """Return how the archive, or the files that were unpacked from it, are verified. Its hash was verified when it was
    downloaded; to do so again takes seconds. Raises UserError for one of the official size with another hash."""
    path, file, how = paths[0], published.files[0], "sizes and labels only"
    if len(paths) > 1:
        return how
    if not READ_ANEW.get():
        return f"{how}; its hash was not looked at, as data verify does"
    if is_official(path, file):
        return "md5 of the official archive"
    if path.stat().st_size == file.size:
        raise UserError(f"{path} is damaged: its md5 is not the published one, {file.md5}; allowed: the official file")
    return f"{how}: it is not the official archive"


_File = tuple[str, int, str, io.BufferedReader]
"""A file: its name, its size, its name for errors, and the file, open at its beginning."""


def _unpacked(paths: Sequence[Path]) -> Iterator[_File]:
    for path in paths:
        with path.open("rb") as file:
            yield path.name, path.stat().st_size, str(path), file


def _packed(path: Path, names: Sequence[str], published: Published) -> Iterator[_File]:
    wanted = {*names}
    with path.open("rb") as file:
        for member, size, _ in read_tar(file, published.files[0].size + _ROOM):
            name = PurePosixPath(member).name
            if name in wanted:
                wanted.remove(name)
                start = file.tell()
                yield name, size, f"{path}: {name}", file
                file.seek(start)
            if not wanted:
                return


def _images(file: io.BufferedReader, size: int, name: str, count: int, rows: slice | None = None) -> np.ndarray:
    return read_npy(file, size, name, "u1", (count, 32, 32, 3), f"uint8 [{count}, 32, 32, 3]", rows)


def _labels(file: io.BufferedReader, size: int, name: str, count: int, rows: slice | None = None) -> np.ndarray:
    labels = read_npy(file, size, name, "iu", (count,), f"integers [{count}]", rows)
    bad = (labels < 0) | (labels > 9)
    if bad.any():
        place = int(bad.argmax())
        raise UserError(f"{name} has label {labels[place]} at image {place} (from 0); allowed: 0 to 9")
    return labels.astype(np.int64)


def _dataset(images: np.ndarray, labels: np.ndarray, published: Published, source: str, how: str) -> Dataset:
    train = Split(torch.empty(0, 32, 32, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    test = Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))
    sha256 = fingerprint(train, test)
    facts = (published.classes, published.mean, published.std, sha256, source)
    return Dataset(published.name, train, test, *facts, verified=how)
