"""An IDX file of MNIST's images, packed or not: a head that claims a shape, and the values."""

from __future__ import annotations

import functools
import gzip
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.idx import read_idx
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line
from tests.fuzz.mutations import COUNTS, mutated

SHAPE = (6, 28, 28)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
HEAD = struct.pack(">4I", 0x803, *SHAPE)
CASES = 200


def seeds() -> dict[str, bytes]:
    plain = HEAD + PIXELS.tobytes()
    return {"plain": plain, "gzip": gzip.compress(plain, mtime=0)}


@functools.cache
def bomb() -> bytes:
    """Return a file that is small when packed."""
    return gzip.compress(HEAD + PIXELS.tobytes() + bytes(2**26), mtime=0)


def mutate(data: bytes, random: Random) -> bytes:
    """Change the head, the number of values, or what is packed."""
    counts = [random.choice((*COUNTS, 28)) % 2**32 if random.random() < 0.3 else side for side in SHAPE]
    kind = random.choice((0x803, 0x803, 0x803, 0x801, 0xD03, 0x8FF))
    content = struct.pack(">4I", kind, *counts) + PIXELS.tobytes()
    if random.random() < 0.3:
        content = mutated(content, random)
    choice = random.randrange(6)
    if choice == 0:
        return bomb()
    return content if choice < 3 else mutated(gzip.compress(content, mtime=0), random)[: 10**6]


def check(data: bytes, folder: Path) -> bool:
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(data)
    try:
        found = read_idx(path, SHAPE)
    except UserError as error:
        one_line(error)
        return False
    try:
        content = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        raise AssertionError(f"accepted, though another reader says: {error!r}") from error
    assert content[:16] == HEAD and content[16:] == found.tobytes()
    return True
