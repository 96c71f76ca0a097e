"""A CIFAR-10 of four images a batch, in every form of the official one."""

from __future__ import annotations

import dataclasses
import gzip
import io
import pickle
import tarfile
from collections.abc import Iterable

import numpy as np
import torch

from fastcifar.data import Dataset
from fastcifar.data.releases import CIFAR10
from tests.data.conftest import write_as_python_2

RECORDS, PIXELS = 4, 3072
RECORD = 1 + PIXELS
RELEASE = dataclasses.replace(CIFAR10, records=(RECORDS,) * 6)
_RANDOM = np.random.default_rng(7)
LABELS = _RANDOM.integers(0, 10, (6, RECORDS))
PLANES = _RANDOM.integers(0, 256, (6, RECORDS, PIXELS), dtype=np.uint8)
"""The pixels of each batch as its file has them: red, green, blue."""
IMAGES = PLANES.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
TRUE_SIZE = PLANES.nbytes
"""Bytes of the whole data."""


def binary_batch(number: int) -> bytes:
    return np.concatenate([LABELS[number, :, None].astype(np.uint8), PLANES[number]], axis=1).tobytes()


def python_batch(number: int, protocol: int = 0, keys: type = bytes, order: str = "C", labels_as: str = "") -> bytes:
    """Return a batch as Python 2 wrote the official ones, or as `pickle` does with another protocol."""
    labels, planes = LABELS[number].tolist(), np.asarray(PLANES[number], order=order)  # pyright: ignore
    if not protocol:
        return write_as_python_2(labels, planes, fortran=order == "F")
    labels = LABELS[number].astype(labels_as) if labels_as else labels
    names = [f"leptodactylus_s_{place:06}.png" for place in range(RECORDS)]
    values = {"batch_label": f"training batch {number}", "labels": labels, "data": planes, "filenames": names}
    if keys is bytes:
        values = {key.encode(): value for key, value in values.items()}
    return pickle.dumps(values, protocol)


def members(form: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return what the official archive holds, "binary" or "python"."""
    archive = RELEASE.binary if form == "binary" else RELEASE.python
    make = binary_batch if form == "binary" else python_batch
    named = {"readme.html": b"<html>", **{name: make(number) for number, name in enumerate(archive.batches)}}
    found = []
    for name, content in named.items():
        member = tarfile.TarInfo(f"{archive.folder}/{name}")
        member.size = len(content)
        found.append((member, content))
    return found


def tar(parts: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """Return an archive of these members; what they claim is written as it is."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for member, content in parts:
            archive.fileobj.write(member.tobuf(form))  # pyright: ignore
            archive.fileobj.write(content + bytes(-len(content) % 512))  # pyright: ignore
            archive.offset = file.tell()
    return file.getvalue()


def gz(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def assert_same(dataset: Dataset, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> None:
    """Raise AssertionError unless these are the images uint8 `[24, 32, 32, 3]` and labels."""
    assert np.array_equal(torch.cat([dataset.train.images, dataset.test.images]).numpy(), images), "wrong images"
    found = torch.cat([dataset.train.labels, dataset.test.labels]).tolist()
    assert found == labels.reshape(-1).tolist(), "wrong labels"
