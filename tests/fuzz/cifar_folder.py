"""The folder of the binary version: one of its six batches is the input."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.cifar import load_release
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line
from tests.fuzz.releases import IMAGES, LABELS, RECORD, RECORDS, RELEASE, assert_same, binary_batch

CASES = 200


def seeds() -> dict[str, bytes]:
    return {"batch": binary_batch(1), "zeros": bytes(RECORDS * RECORD)}


def mutate(data: bytes, random: Random) -> bytes:
    """Change labels, and the number of records."""
    if random.random() < 0.3:
        return (data * 3)[: RECORD * random.randrange(3 * RECORDS) + random.choice((-1, 0, 0, 1))]
    changed = bytearray(data)
    changed[RECORD * random.randrange(RECORDS)] = random.randrange(256)
    return bytes(changed)


def check(data: bytes, folder: Path) -> bool:
    for number, name in enumerate(RELEASE.binary.batches):
        (folder / name).write_bytes(data if number == 1 else binary_batch(number))
    right = len(data) == RECORDS * RECORD and all(data[place * RECORD] < 10 for place in range(RECORDS))
    try:
        dataset = load_release(RELEASE, folder)
    except UserError as error:
        one_line(error)
        assert not right, f"refused: {error}"
        return False
    assert right, "accepted"
    records = np.frombuffer(data, dtype=np.uint8).reshape(RECORDS, RECORD)
    images, labels, rows = IMAGES.copy(), LABELS.copy(), slice(RECORDS, 2 * RECORDS)
    images[rows] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels[1] = records[:, 0]
    assert_same(dataset, images, labels)
    return True
