"""Changes to bytes that know no format: flipped bits, parts cut off, doubled, swapped and moved, other counts."""

from __future__ import annotations

import re
from random import Random

COUNTS = (
    *(0, 1, 127, 128, 255, 256, 65535, 65536, 2**24, 2**27, 2**28 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -128, -(2**31), -(2**63)),
)
"""Numbers at which readers of counts go wrong: limits of integers, and sizes that would fill a machine's memory."""


def _place(data: bytes, random: Random) -> int:
    """Return a place: often one of the first or the last 512, where formats keep what they say of the rest."""
    if random.random() < 0.5 and len(data) > 1024:
        return random.choice((0, len(data) - 512)) + random.randrange(512)
    return random.randrange(len(data) + 1)


def _part(data: bytes, random: Random) -> tuple[int, int]:
    """Return the beginning and the end of a part, most often a short one."""
    start = _place(data, random)
    return start, min(len(data), start + random.choice((1, 2, 4, 8, 16, random.randint(1, 1024), len(data) // 3)))


def flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        changed[_place(data, random) % len(data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, random: Random) -> bytes:
    start, end = _part(data, random)
    kind = random.randrange(3)
    fill = b"\0" if kind == 0 else b"\xff" if kind == 1 else bytes([random.randrange(256)])
    return data[:start] + fill * (end - start) + data[end:]


def truncate(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def behead(data: bytes, random: Random) -> bytes:
    return data[_place(data, random) :]


def insert(data: bytes, random: Random) -> bytes:
    start = _place(data, random)
    return data[:start] + random.randbytes(random.choice((1, 2, 4, 100))) + data[start:]


def extend(data: bytes, random: Random) -> bytes:
    return data + random.choice((b"\0", b"\n", random.randbytes(8), data[:512], bytes(4096), data))


def delete(data: bytes, random: Random) -> bytes:
    start, end = _part(data, random)
    return data[:start] + data[end:]


def double(data: bytes, random: Random) -> bytes:
    start, end = _part(data, random)
    return data[:end] + data[start:end] * random.choice((1, 1, 2, 50)) + data[end:]


def swap(data: bytes, random: Random) -> bytes:
    (a, b), (c, d) = sorted((_part(data, random), _part(data, random)))
    b = min(b, c)
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def recount(data: bytes, random: Random) -> bytes:
    """Write a count of 1, 2, 4 or 8 bytes over another."""
    size = random.choice((1, 2, 4, 4, 8, 8))
    place, order = _place(data, random), random.choice(("little", "big"))
    count = (random.choice(COUNTS) % 256**size).to_bytes(size, order)
    return data[:place] + count + data[place + size :]


def renumber(data: bytes, random: Random) -> bytes:
    """Write another number in place of one in digits."""
    numbers = list(re.finditer(rb"-?\d{1,20}", data[: 1 << 16]))
    if not numbers:
        return recount(data, random)
    number, new = random.choice(numbers), str(random.choice((*COUNTS, 10**100, 0.5, "1e999", "nan"))).encode()
    return data[: number.start()] + new + data[number.end() :]


GENERAL = (flip, overwrite, truncate, behead, insert, extend, delete, double, swap, recount, recount, renumber)


def mutated(data: bytes, random: Random) -> bytes:
    """Return `data` with one to a few of the general mutations."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(GENERAL)(data or b"\0", random)
    return data
