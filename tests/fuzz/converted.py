"""A set that is kept in the cache as it is in memory: a line of JSON, and the bytes of its arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
from pathlib import Path
from random import Random

from fastcifar.data import converted
from fastcifar.data.dataset import fingerprint
from fastcifar.data.synthetic import make_synthetic
from tests.fuzz.mutations import COUNTS, mutated
from tests.fuzz.values import json_value, mutated_json

KEY = "0" * 64
VAL, MADE = make_synthetic(2, 3).test, make_synthetic(4, 2)
DATASET = dataclasses.replace(MADE, val=VAL, sha256=fingerprint(MADE.train, MADE.test, VAL))


def _kept() -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        converted._write(Path(file.name), KEY, DATASET)
        return file.read()


KEPT = _kept()


def seeds() -> dict[str, bytes]:
    return {"kept": KEPT}


def mutate(data: bytes, random: Random) -> bytes:
    """Change a count or a fact of the line, or the arrays."""
    line, arrays = KEPT.split(b"\n", 1)
    line = line.partition(b" ")[2]
    if random.random() < 0.3:
        return converted._signed(mutated_json(line, random)) + arrays
    facts = json.loads(line)
    if random.random() < 0.5:
        facts["splits"][random.choice([*facts["splits"]])][random.randrange(3)] = random.choice(
            (*COUNTS, 1.5, "4", None, True)
        )
    else:
        facts["facts"][random.choice([*facts["facts"]])] = json_value(random)
    with contextlib.suppress(UnicodeEncodeError, ValueError):  # halves of surrogates, numbers of 4,200 digits
        line = json.dumps(facts).encode()
    return converted._signed(line) + (mutated(arrays, random) if random.random() < 0.2 else arrays)


def check(data: bytes, folder: Path) -> bool:
    try:
        found = converted._read(io.BytesIO(data), KEY)
    except converted.DAMAGE:
        return False
    assert found.sha256 == DATASET.sha256 and found.train.images.equal(DATASET.train.images)
    return True
