"""A MAT-file of SVHN: elements with types and sizes, packed by zlib or not."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.mat import read_mat
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line
from tests.fuzz.mutations import COUNTS, mutated

SHAPES = {"X": (32, 32, 3, 3), "y": (3, 1)}
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPES["X"], dtype=np.uint8)
DIGITS = np.array([[1], [10], [3]], dtype=np.uint8)
HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
CASES = 200


def element(kind: int, content: bytes, size: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(content) if size is None else size) + content + bytes(-len(content) % 8)


def variable(name: str, array: np.ndarray, kind: int = 9, axes: tuple[int, ...] = (), **sizes: int) -> bytes:
    """Return a matrix, of another class, shape or sizes of its elements where these are given."""
    return element(
        14,
        element(6, struct.pack("<II", kind, 0), sizes.get("flags"))
        + element(5, np.array(axes or array.shape, "<u4").tobytes(), sizes.get("shape"))
        + element(1, name.encode(), sizes.get("named"))
        + element(2, array.tobytes(order="F"), sizes.get("values")),
        sizes.get("whole"),
    )


def packed(content: bytes) -> bytes:
    content = zlib.compress(content)
    return struct.pack("<II", 15, len(content)) + content


RIGHT = [variable("X", PIXELS), variable("y", DIGITS)]


@functools.cache
def bombs() -> list[bytes]:
    """Return variables that are small when packed."""
    return [
        packed(RIGHT[0] + bytes(2**26)),
        packed(element(14, bytes(2**26))),
        packed(element(14, element(6, struct.pack("<II", 9, 0)) + element(5, bytes(2**26)))),
        packed(variable("z", np.zeros(2**26, np.uint8))),
    ]


def seeds() -> dict[str, bytes]:
    return {"plain": HEAD + b"".join(RIGHT), "packed": HEAD + b"".join(map(packed, RIGHT))}


def mutate(data: bytes, random: Random) -> bytes:
    """Change a size, the class or the shape of a variable; add one; damage what is packed."""
    parts = [*RIGHT]
    name, array = random.choice((("X", PIXELS), ("y", DIGITS)))
    choice = random.randrange(6)
    if choice <= 1:
        sizes = {random.choice(("flags", "shape", "named", "values", "whole")): random.choice(COUNTS) % 2**32}
        parts[name == "y"] = variable(name, array, **sizes)
    elif choice == 2:
        shape = tuple(random.choice((*COUNTS, 32)) % 2**31 if random.random() < 0.5 else s for s in array.shape)
        parts[name == "y"] = variable(name, array, random.choice((9, 9, 1, 2, 5, 6, 17, 0x809)), shape)
    elif choice == 3:
        parts.insert(random.randrange(3), random.choice((*bombs(), *RIGHT, variable("z", DIGITS), b"\0" * 8)))
    elif choice == 4:
        parts[name == "y"] = mutated(parts[name == "y"], random)
    if random.random() < 0.5:
        parts = [packed(part) if part[:1] == b"\x0e" else part for part in parts]
    whole = HEAD + b"".join(parts)
    return mutated(whole, random) if choice == 5 else whole


def check(data: bytes, folder: Path) -> bool:
    path = folder / "test_32x32.mat"
    path.write_bytes(data)
    try:
        found = read_mat(path, SHAPES)
    except UserError as error:
        one_line(error)
        return False
    if data in seeds().values():
        import scipy.io

        with warnings.catch_warnings():
            expected = scipy.io.loadmat(io.BytesIO(data))
        assert all(np.array_equal(found[name], expected[name]) for name in SHAPES)
    assert all(found[name].shape == shape for name, shape in SHAPES.items())
    return True
