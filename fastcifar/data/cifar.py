"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from any of their usual forms, checked as they are read.

A place is one of these, or a folder that holds some of them, of which the first in this order is read (CIFAR-100 in
brackets):
- `cifar-10-batches-bin/` (`cifar-100-binary/`), the unpacked binary version: files of records, a byte of label (two,
  the coarse and the fine) and 3,072 of pixels each;
- `cifar-10-batches-py/` (`cifar-100-python/`), the unpacked Python version: pickles;
- `cifar-10-binary.tar.gz` and `cifar-10-python.tar.gz` (`cifar-100-...`), the official archives, known by their md5 and
  read in place;
- one `.npz` with `train_images`, `train_labels`, `test_images` and `test_labels`, or with `images` and `labels`, the
  training images first; images uint8 `[N, 32, 32, 3]`. CIFAR-100's coarse labels are `train_coarse_labels`,
  `test_coarse_labels` and `coarse_labels`. In a folder, those that are called as another data
  set are not looked at.
A folder or an `.npz` is read in half a second. An archive takes about two, and pickles one; then they are as fast, kept
in the user's cache (`converted.py`). Unpacked files that are not the official ones are told by their sizes, counts and
ranges of labels alone: people have written them again. A download is unpacked into the user's cache, with checksums by
which it is verified whenever it is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from fastcifar.catalogue import DATASETS, places_of
from fastcifar.data.archives import damage, npz_keys, read_npz, read_tar_gz
from fastcifar.data.cache import install, is_verified
from fastcifar.data.converted import converted
from fastcifar.data.dataset import Dataset, Split, fingerprint
from fastcifar.data.homes import homes_of
from fastcifar.data.pickled import read_pickle
from fastcifar.data.places import contents, find_data, reading
from fastcifar.data.releases import CIFAR10, CIFAR100, CIFAR100_COARSE, Archive, Release
from fastcifar.errors import UserError

_PIXELS = 3 * 32 * 32
_ROOM = 1 << 20
"""Bytes that an archive may have beside twice its official size when unpacked: 184 MB of 170 MB."""


def load_release(
    release: Release,
    data_dir: str | PathLike[str] | None = None,
    cache: Path | None = None,
    mirror: str | None = None,
) -> Dataset:
    """Load a release to the CPU from `data_dir`, else `$FASTCIFAR_DATA`, else `cache` (by default the user's), to which
    it is downloaded if need be: from `mirror`, else `$FASTCIFAR_MIRROR`, else the homes in the catalogue.

    Raises UserError if the data is damaged, a place that is named holds none or `mirror` is no address; DownloadError
    if a download fails.
    """
    homes = homes_of(release.archives, release.homes, mirror)
    folders = "".join(f"{archive.folder}/, " for archive in release.archives)
    looked_for = f"{folders}{', '.join(archive.filename for archive in release.archives)} or one .npz"

    usual = dataclasses.replace(release, learned=-1)  # the labels that the checksums are of

    def fill(cache: Path) -> None:
        install(homes, cache, _files, lambda folder, archive: _read_folder(folder, archive, usual).sha256)

    with reading(homes[0].url):
        read = find_data(lambda place: _reader(place, release), fill, release.title, looked_for, data_dir, cache)
        dataset = read()
        with contents(Path(dataset.source)):
            return _verified(dataset, release)


load_cifar10 = partial(load_release, CIFAR10)


def load_cifar100(data_dir: str | PathLike[str] | None = None, mirror: str | None = None, variant: str = "") -> Dataset:
    """Load CIFAR-100 with its fine labels, or with the variant "coarse" with its coarse ones."""
    return load_release(CIFAR100_COARSE if variant else CIFAR100, data_dir, None, mirror)


def _verified(dataset: Dataset, release: Release) -> Dataset:
    """Return the dataset with how its files were verified. Raises UserError where their checksums are others."""
    path = Path(dataset.source)
    if is_verified(path, dataset.sha256 if release.learned == -1 else None):
        how = "checksums made from the official archive"
    elif path.is_dir():
        how = next(verified(path, each) for each in release.archives if (path / each.batches[0]).is_file())
    else:
        how = "its arrays' checksums" if path.suffix == ".npz" else "md5 of the official archive"
    return dataclasses.replace(dataset, verified=how)


def _files(path: Path, archive: Archive) -> Iterator[tuple[str, bytes]]:
    """Yield the names and the contents of the batches in an archive."""
    with damage(str(path)):
        for number, _, _, file in _packed(path, archive):
            yield archive.batches[number], file.read()


def _reader(place: Path, release: Release) -> Callable[[], Dataset] | None:
    """Return a function that reads the data that `place` is or holds, or None if there is none."""
    if place.is_file():
        if place.suffix == ".npz":
            return _kept(_read_npz, place, release)
        if place.name.endswith((".tar.gz", ".tgz")):
            return _kept(_read_archive, place, release)
        raise UserError(f"{place} is a file of no known kind; allowed: a folder, a .tar.gz or an .npz")
    name = release.name.partition(":")[0]
    found = (_reader_of(folder, release) for folder in places_of(name, place) if folder.is_dir())
    return next((read for read in found if read), None)


def _reader_of(place: Path, release: Release) -> Callable[[], Dataset] | None:
    """Do as `_reader` for a folder."""
    for archive in release.archives:
        if place.name == archive.folder or any((place / name).is_file() for name in archive.batches):
            return _unpacked_reader(place, archive, release)
        if (place / archive.folder).is_dir():
            return _unpacked_reader(place / archive.folder, archive, release)
    for archive in release.archives:
        if (place / archive.filename).is_file():
            return _kept(_read_archive, place / archive.filename, release)
    others = {name for name, entry in DATASETS.items() if entry.homes} - {release.name.partition(":")[0]}
    found = sorted(path for path in place.glob("[!.]*.npz") if path.is_file() and path.stem not in others)
    if len(found) > 1:
        found = [path for path in found if _npz_keys(path, release)] or found[:1]
    if len(found) > 1:
        raise UserError(f"{place} holds {' and '.join(path.name for path in found)}; allowed: one, give its own path")
    return _kept(_read_npz, found[0], release) if found else None


def _unpacked_reader(folder: Path, archive: Archive, release: Release) -> Callable[[], Dataset]:
    read, paths = partial(_read_folder, folder, archive, release), [folder / name for name in archive.batches]
    is_slow = archive is release.python and all(path.is_file() for path in paths)
    return partial(_checked, folder, partial(converted, release.name, paths, read) if is_slow else read)


def _kept(read: Callable[[Path, Release], Dataset], path: Path, release: Release) -> Callable[[], Dataset]:
    return partial(_checked, path, partial(converted, release.name, [path], partial(read, path, release)))


def _checked(path: Path, read: Callable[[], Dataset]) -> Dataset:
    with contents(path):
        return read()


def _read_folder(folder: Path, archive: Archive, release: Release) -> Dataset:
    return _assemble(_unpacked(folder, archive), archive, release, str(folder))


def _read_archive(path: Path, release: Release) -> Dataset:
    archive = _verify(path, release)
    with damage(str(path)):
        return _assemble(_packed(path, archive), archive, release, str(path))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _verify(path: Path, release: Release) -> Archive:
    """Return the official archive with the md5 of `path`. Raises UserError if there is none."""
    md5 = _md5(path)
    for archive in release.archives:
        if md5 == archive.md5:
            return archive
    size = path.stat().st_size
    for archive in release.archives:
        if path.name == archive.filename:
            state = "only half downloaded, or damaged" if size < archive.size else "not the official file"
            raise UserError(
                f"{path} is {state}: {size:,} bytes with md5 {md5}; "
                f"allowed: {archive.size:,} bytes with md5 {archive.md5}"
            )
    allowed = " or ".join(f"{archive.md5} ({archive.filename})" for archive in release.archives)
    raise UserError(f"{path} is no official archive: its md5 is {md5}; allowed: {allowed}")


def verified(folder: Path, archive: Archive) -> str:
    """Return how unpacked batches are verified: by the md5 of each, where they are the official ones and an md5 is
    known, else by sizes and labels only: people have written them again. Takes a third of a second for the former.

    Raises UserError where some are the official ones and others are not."""
    others: Sequence[str] = archive.batches
    if archive.batch_md5:
        pairs = zip(archive.batches, archive.batch_md5, strict=True)
        others = [name for name, md5 in pairs if _md5(folder / name) != md5]
    if 0 < len(others) < len(archive.batches):
        raise UserError(f"{folder} is damaged: {', '.join(others)} is not the official file, as the others are")
    return "sizes and labels only" if others else "md5 of the official batches"


_File = tuple[int, str, int, io.BufferedReader]
"""A batch: its place in the archive, its name for errors, its size in bytes, and the open file."""


def _unpacked(folder: Path, archive: Archive) -> Iterator[_File]:
    for number, name in enumerate(archive.batches):
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder} lacks {name}; allowed: all of {', '.join(archive.batches)}")
        with open(path, "rb") as file:
            yield number, str(path), path.stat().st_size, file


def _packed(path: Path, archive: Archive) -> Iterator[_File]:
    numbers = {f"{archive.folder}/{name}": number for number, name in enumerate(archive.batches)}
    wanted = dict(numbers)
    for name, size, file in read_tar_gz(path, 2 * archive.size + _ROOM):
        if name in numbers and wanted.pop(name, None) is None:
            raise UserError(f"{path} holds {name} twice")
        if name in numbers:
            yield numbers[name], f"{path}: {name}", size, file
    if wanted:
        raise UserError(f"{path} lacks {', '.join(wanted)}")


def _assemble(files: Iterator[_File], archive: Archive, release: Release, source: str) -> Dataset:
    """Read the dataset in these batches, in one pass, its pixels from `[3, 32, 32]` to `[32, 32, 3]`."""
    # numpy's memory, which unlike torch's is in huge pages: its first touch is three times as fast.
    images = torch.from_numpy(np.empty((sum(release.records), 32, 32, 3), dtype=np.uint8))
    labels = torch.empty(len(images), dtype=torch.int64)
    used, classes = release.labels[release.learned]
    columns = len(release.labels)
    buffer = np.empty((max(release.records), columns + _PIXELS), dtype=np.uint8)
    for number, name, size, file in files:
        records = release.records[number]
        if archive is release.binary:
            batch = buffer[:records]
            if size != batch.nbytes or file.readinto(batch.data) != size:
                allowed = f"{batch.nbytes:,}, {records:,} records of {batch.shape[1]:,}"
                raise UserError(f"{name} is {size:,} bytes; allowed: {allowed}")
            for column, (what, most) in enumerate(release.labels):
                what = "label" if what == used else what.replace("_", " ").removesuffix("s")
                _check_labels(name, batch[:, column], most, what)
            batch_labels, pixels = batch[:, :columns][:, release.learned], batch[:, columns:]
        else:
            batch_labels, pixels = read_pickle(name, size, file, records, _PIXELS, used, release.title)
            _check_labels(name, batch_labels, classes)
        end = sum(release.records[: number + 1])
        labels[end - records : end] = torch.from_numpy(batch_labels)
        images[end - records : end] = torch.from_numpy(pixels).unflatten(1, (3, 32, 32)).permute(0, 2, 3, 1)
        del batch_labels, pixels  # before the next batch needs memory
    first_test = len(images) - release.records[-1]
    train = Split(images[:first_test], labels[:first_test])
    return _dataset(train, Split(images[first_test:], labels[first_test:]), release, source)


def _dataset(train: Split, test: Split, release: Release, source: str) -> Dataset:
    sha256 = fingerprint(train, test)
    return Dataset(release.name, train, test, release.classes, release.mean, release.std, sha256, source)


def _check_labels(name: str, labels: np.ndarray, classes: int, what: str = "label") -> None:
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        place = int(bad.argmax())
        allowed = f"0 to {classes - 1}"
        raise UserError(f"{name} has {what} {labels[place]} at image {place} (from 0); allowed: {allowed}")


def _npz_forms(release: Release) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of the two forms that an .npz may have."""
    labels = "labels" if release.learned == -1 else release.labels[release.learned][0]
    return ("train_images", f"train_{labels}", "test_images", f"test_{labels}"), ("images", labels)


def _npz_keys(path: Path, release: Release) -> tuple[str, ...] | None:
    """Return the keys of the arrays to read, or None if the file has neither set of them or is no .npz."""
    present = npz_keys(path)
    return next((keys for keys in _npz_forms(release) if present.issuperset(keys)), None)


def _read_npz(path: Path, release: Release) -> Dataset:
    split_keys, whole_keys = _npz_forms(release)
    keys = _npz_keys(path, release)
    if keys is None:
        keys = f"{', '.join(split_keys)}, nor with {' and '.join(whole_keys)}"
        raise UserError(f"{path} is damaged, or no .npz with {keys}")
    train_size, test_size = sum(release.records[:-1]), release.records[-1]
    classes = release.labels[release.learned][1]
    sizes = (train_size, train_size, test_size, test_size) if keys == split_keys else (train_size + test_size,) * 2
    found = [_npz_array(path, key, size, classes) for key, size in zip(keys, sizes, strict=True)]
    if keys == whole_keys:
        images, labels = found
        found = [images[:train_size], labels[:train_size], images[train_size:], labels[train_size:]]
    if (largest := found[1].max()) < classes - 1:  # another set's arrays may have the same names and shapes
        raise UserError(f"{path} is no {release.title}: its largest label is {largest}; allowed: {classes - 1}")
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(array) for array in found)
    return _dataset(Split(train_images, train_labels), Split(test_images, test_labels), release, str(path))


def _npz_array(path: Path, key: str, size: int, classes: int) -> np.ndarray:
    """Read one array of an .npz, checked: images uint8 `[size, 32, 32, 3]` or labels as int64 `[size]`."""
    if key.endswith("images"):
        array = read_npz(path, key, "u1", (size, 32, 32, 3), f"uint8 [{size}, 32, 32, 3]")
        return np.ascontiguousarray(array)
    labels = read_npz(path, key, "iu", (size,), f"integers [{size}]")
    _check_labels(f"{path}: {key}", labels, classes)
    return labels.astype(np.int64)
