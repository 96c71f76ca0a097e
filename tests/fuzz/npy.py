"""The two .npy files of CIFAR-10-C: one of them is the input, unpacked or in the archive."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.cifar_tests import load_cifar10_c
from fastcifar.data.releases import CIFAR10_C
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line
from tests.fuzz.mutations import mutated
from tests.fuzz.npz import DTYPES, HEADERS, SHAPES, header

COUNT, SEVERITY = 2, 3
PUBLISHED = replace(CIFAR10_C, records=(0, COUNT))
IMAGES = np.random.default_rng(0).integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(5 * COUNT, dtype=np.uint8)
PACKED = b"packed"
"""The first bytes of an input that is the whole archive."""

CASES = 200


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


FILES = {"fog.npy": saved(IMAGES), "labels.npy": saved(LABELS)}


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"CIFAR-10-C/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def seeds() -> dict[str, bytes]:
    return {"images": FILES["fog.npy"], "labels": FILES["labels.npy"], "archive": PACKED + archive(FILES)}


def mutate(data: bytes, random: Random) -> bytes:
    """Change the header of an array, or the archive."""
    name = random.choice([*FILES])
    array = IMAGES if name == "fog.npy" else LABELS
    descr = random.choice(DTYPES) if random.random() < 0.4 else f"'{array.dtype.str}'"
    shape = random.choice(SHAPES) if random.random() < 0.4 else str(array.shape)
    text = f"{{'descr': {descr}, 'fortran_order': {random.choice((True, False, False, 1))}, 'shape': {shape}}}"
    if random.random() < 0.3:
        text = random.choice(HEADERS)
    content = header(text, random.choice((1, 1, 2, 3, 9))) + array.tobytes()
    choice = random.randrange(4)
    if choice == 0:
        return content
    if choice == 1:
        return mutated(FILES[name], random)
    return PACKED + (archive({**FILES, name: content}) if choice == 2 else mutated(archive(FILES), random))


def check(data: bytes, folder: Path) -> bool:
    place = folder
    if data.startswith(PACKED):
        place = folder / "CIFAR-10-C.tar"
        place.write_bytes(data.removeprefix(PACKED))
    else:
        own = "labels.npy" if len(data) < 1000 else "fog.npy"
        for name, content in FILES.items():
            (folder / name).write_bytes(data if name == own else content)
    try:
        dataset = load_cifar10_c(place, None, f"fog-{SEVERITY}", PUBLISHED)
    except UserError as error:
        one_line(error)
        return False
    assert dataset.test.images.shape == (COUNT, 32, 32, 3)
    if not data.startswith(PACKED):
        rows = slice((SEVERITY - 1) * COUNT, SEVERITY * COUNT)
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)[rows]
        found = dataset.test.labels if own == "labels.npy" else dataset.test.images
        assert np.array_equal(found.numpy(), array), "read otherwise by numpy"
    return True
