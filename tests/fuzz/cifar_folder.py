"""The folder of the binary version: one of its six batches is the input."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.cifar10 import Release, load_cifar10
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line

RECORDS, RECORD = 4, 3073
RELEASE = Release(records=RECORDS)


def batch(number: int) -> bytes:
    """Return a right batch."""
    records = np.random.default_rng(number).integers(0, 256, (RECORDS, RECORD), dtype=np.uint8)
    records[:, 0] %= 10
    return records.tobytes()


def seeds() -> dict[str, bytes]:
    return {"batch": batch(2), "zeros": bytes(RECORDS * RECORD)}


def mutate(data: bytes, random: Random) -> bytes:
    """Change labels, and the number of records."""
    if random.random() < 0.3:
        return (data * 3)[: RECORD * random.randrange(3 * RECORDS) + random.choice((-1, 0, 0, 1))]
    changed = bytearray(data)
    changed[RECORD * random.randrange(RECORDS)] = random.randrange(256)
    return bytes(changed)


def check(data: bytes, folder: Path) -> bool:
    for number, name in enumerate(RELEASE.binary.batches):
        (folder / name).write_bytes(data if number == 1 else batch(number))
    right = len(data) == RECORDS * RECORD and all(data[place * RECORD] < 10 for place in range(RECORDS))
    try:
        dataset = load_cifar10(folder, RELEASE)
    except UserError as error:
        one_line(error)
        assert not right, f"refused: {error}"
        return False
    assert right, "accepted"
    rows = slice(RECORDS, 2 * RECORDS)
    records = np.frombuffer(data, dtype=np.uint8).reshape(RECORDS, RECORD)
    assert dataset.train.labels[rows].tolist() == records[:, 0].tolist()
    planes = dataset.train.images[rows].permute(0, 3, 1, 2).reshape(RECORDS, -1)
    assert np.array_equal(planes.numpy(), records[:, 1:])
    return True
