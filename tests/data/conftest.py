"""Small data sets in every form of the official ones, made without network: a CIFAR-10 and a CIFAR-100 of 120 images,
and the sets of several files of 60."""

import gzip
import hashlib
import struct
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fastcifar.data import releases
from fastcifar.data.fetch import Pinned
from fastcifar.data.releases import CIFAR10, CIFAR100, Archive, Published, Release

RELEASES = {
    each.name: replace(each, records=records) for each, records in ((CIFAR10, (20,) * 6), (CIFAR100, (100, 20)))
}


def write_as_python_2(labels, pixels, fortran=False, field=b"labels", coarse=None):
    """Return a batch as Python 2 and its numpy wrote the official ones, with strings as bytes."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    raw = pixels.tobytes(order="F" if fortran else "C")
    dtype = b"cnumpy\ndtype\nq\n" + short(b"u1") + b"K\0K\1\x87Rq\x0b"
    dtype += b"(K\3" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\7cnumpy\nndarray\nq\x08K\0\x85" + short(b"b") + b"\x87Rq\t"
    shape = b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape) + b"\x86"
    order = b"\x88" if fortran else b"\x89"
    array += b"(K\1" + shape + dtype + order + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"

    def numbers(values):
        return b"]q\5(" + b"".join(b"K" + bytes([label]) for label in values) + b"e"

    names = b"]q\x0c(" + b"".join(short(b"leptodactylus_s_%06d.png" % place) for place in range(len(labels))) + b"e"
    start = b"\x80\2}q\1(" + short(b"batch_label") + b"q\2" + short(b"training batch 1 of 5") + b"q\3"
    fields = b"" if coarse is None else short(b"coarse_labels") + numbers(coarse)
    fields += short(field) + b"q\4" + numbers(labels) + short(b"data") + b"q\6" + array + short(b"filenames") + names
    return start + fields + b"u."


@dataclass
class Small:
    """The small release on disk and the arrays in it."""

    folder: Path
    release: Release
    images: np.ndarray
    """uint8 `[120, 32, 32, 3]`, the last 20 for the test set."""
    labels: np.ndarray

    @property
    def binary(self) -> Path:
        return self.folder / self.release.binary.folder

    @property
    def python(self) -> Path:
        return self.folder / self.release.python.folder


@dataclass
class SmallFiles:
    """A small set of several files in a folder, the facts that fit it, and the arrays in it."""

    folder: Path
    published: Published
    images: np.ndarray
    """uint8 `[N, H, W, 3]`, the last 20 for the test set."""
    labels: np.ndarray

    @property
    def paths(self) -> list[Path]:
        return [self.folder / file.filename for file in self.published.files]


GREY = (127.5, 127.5, 127.5)
"""The mean of random pixels."""


def make_files(name: str, folder: Path, random: np.random.Generator) -> SmallFiles:
    """Write a small svhn, svhn:extra, mnist, fashion-mnist, cifar10.1, cifar10.1:v4 or cifar10-c to `folder`."""
    facts = {"svhn": releases.SVHN, "svhn:extra": releases.SVHN_EXTRA, "mnist": releases.MNIST}
    facts |= {"fashion-mnist": releases.FASHION_MNIST, "cifar10-c": releases.CIFAR10_C}
    facts |= {each.name: each for each in releases.CIFAR10_1.values()}
    published = facts[name]
    records = {"svhn": (40, 20), "svhn:extra": (40, 10, 20), "cifar10-c": (0, 4)}.get(name, (40, 20))
    records = (0, 20) if name.startswith("cifar10.1") else records
    folder.mkdir(parents=True, exist_ok=True)
    count, side = sum(records), 28 if "mnist" in name else 32
    images = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = random.integers(0, 10, count)
    if "mnist" in name:
        images[:] = images[..., :1]
    ends = np.cumsum((0, *records))
    parts = [slice(*ends[place : place + 2]) for place in range(len(records))]
    if name.startswith("svhn"):
        import scipy.io

        for file, part in zip(published.files, parts, strict=True):
            digits = np.where(labels[part] == 0, 10, labels[part]).astype(np.uint8)[:, None]
            arrays = {"X": images[part].transpose(1, 2, 3, 0), "y": digits}
            scipy.io.savemat(folder / file.filename, arrays, do_compression=True)
    elif "mnist" in name:
        for part, names in zip(parts, (published.files[:2], published.files[2:]), strict=True):
            pixels, digits = images[part, ..., 0], labels[part].astype(np.uint8)
            for file, array in zip(names, (pixels, digits), strict=True):
                head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
                (folder / file.filename).write_bytes(gzip.compress(head + array.tobytes(), 1))
    elif name.startswith("cifar10.1"):
        for file, array in zip(published.files, (images, labels.astype(np.int32)), strict=True):
            np.save(folder / file.filename, array)
    else:
        images = random.integers(0, 256, (5 * count, 32, 32, 3), dtype=np.uint8)
        labels = np.tile(labels, 5)
        unpacked = folder / "CIFAR-10-C"
        unpacked.mkdir()
        np.save(unpacked / "brightness.npy", images[::-1])
        np.save(unpacked / "gaussian_noise.npy", images)
        np.save(unpacked / "labels.npy", labels.astype(np.uint8))
        with tarfile.open(folder / "CIFAR-10-C.tar", "w") as tar:
            tar.add(unpacked, unpacked.name)
    files = tuple(official(file, folder / file.filename) for file in published.files)
    return SmallFiles(folder, replace(published, files=files, records=records, mean=GREY), images, labels)


def official(file: Pinned, path: Path) -> Pinned:
    """Return a file's facts with those of the file at `path`, of the hash that they have."""
    content = path.read_bytes()
    hashes = {name: hashlib.new(name, content).hexdigest() if getattr(file, name) else "" for name in ("md5", "sha256")}
    return replace(file, size=len(content), **hashes)


def pack(folder: Path, target: Path) -> None:
    with tarfile.open(target, "w:gz") as tar:
        tar.add(folder, folder.name)


def published(archive: Archive, path: Path) -> Archive:
    content = path.read_bytes()
    md5, sha256 = (hashlib.new(name, content).hexdigest() for name in ("md5", "sha256"))
    return replace(archive, size=len(content), md5=md5, sha256=sha256)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Keep tests from finding data by accident and from leaving any in the user's cache."""
    monkeypatch.delenv("FASTCIFAR_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg-cache"))


@pytest.fixture(scope="session")
def python2_pickle():
    return write_as_python_2


@pytest.fixture
def small(request, tmp_path) -> Small:
    """The small CIFAR-10, or the release that a test's parameter `small` names."""
    return make_small(getattr(request, "param", "cifar10"), tmp_path)


def make_small(name: str, tmp_path: Path) -> Small:
    """Write the small release of this name to a folder "official"."""
    random = np.random.default_rng(7)
    release = RELEASES[name]
    used, classes = release.labels[-1]
    images = random.integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(120) % classes
    labels[:100] = random.permutation(labels[:100])
    coarse = [labels % classes for _, classes in release.labels[:-1]]
    columns = np.stack([*coarse, labels], axis=1).astype(np.uint8)
    folder = tmp_path / "official"
    for archive in release.archives:
        (folder / archive.folder).mkdir(parents=True)
        end = 0
        for batch, records in zip(archive.batches, release.records, strict=True):
            rows = slice(end, end := end + records)
            planes = images[rows].transpose(0, 3, 1, 2).reshape(records, -1)
            if archive is release.binary:
                content = np.concatenate([columns[rows], planes], axis=1).tobytes()
            else:
                others = coarse[0][rows] if coarse else None
                content = write_as_python_2(labels[rows], planes, field=used.encode(), coarse=others)
            (folder / archive.folder / batch).write_bytes(content)
        pack(folder / archive.folder, folder / archive.filename)
    binary, python = (published(archive, folder / archive.filename) for archive in release.archives)
    # None of these files is official: no md5 of a batch is known.
    binary, python = replace(binary, batch_md5=()), replace(python, batch_md5=())
    return Small(folder, replace(release, binary=binary, python=python), images, labels)
