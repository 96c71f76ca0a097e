"""CRC-32C (Castagnoli; RFC 3720, appendix B.4) of many byte strings at once, with numpy alone.

A checksum is linear over bits: that of a text is the exclusive or of those of its parts, each moved over the zero bytes
that follow it. Four bytes are one look-up in each of two tables of 65,536 entries, for all texts in one operation.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LARGEST_PART = 512
"""Words of 4 bytes in a part of a text. All parts are gone through side by side."""

_Tables = tuple[np.ndarray, np.ndarray]
"""What becomes of the lower and of the upper 16 bits of a checksum: uint32 `[65536]` each."""


def crc32c(texts: Sequence[bytes | memoryview]) -> np.ndarray:
    """Return the checksum of each text, of 4 bytes or more: uint32 `[len(texts)]`. Takes 2 to 3 times the memory of
    texts that are as long as the longest."""
    longest = max(map(len, texts), default=4)
    words = min(_LARGEST_PART, 1 << (-(-longest // 4) - 1).bit_length())
    parts = -(-longest // (4 * words))
    rows = np.zeros((len(texts), parts * words * 4), np.uint8)
    for row, text in zip(rows, texts, strict=True):  # zeros before a text leave a checksum that begins with zero
        row[len(row) - len(text) :] = np.frombuffer(text, np.uint8)
        row[len(row) - len(text) :][:4] ^= 0xFF  # that it begins with ones
    columns = np.ascontiguousarray(rows.view("<u4").reshape(-1, words).T)
    step, found = _moves(1), np.zeros(len(texts) * parts, np.uint32)
    for column in columns:
        found = _moved(found ^ column, step)
    whole, over = np.zeros(len(texts), np.uint32), _moves(words)
    for part in found.reshape(-1, parts).T:
        whole = _moved(whole, over) ^ part
    return ~whole


def _moved(sums: np.ndarray, tables: _Tables) -> np.ndarray:
    low, high = tables
    return low[sums & 0xFFFF] ^ high[sums >> 16]


@functools.cache
def _moves(words: int) -> _Tables:
    """Return the tables that move checksums over `words` times 4 zero bytes; `words` is a power of two."""
    if words > 1:
        half = _moves(words // 2)
        low, high = (_moved(table, half) for table in half)
        return low, high
    low = np.arange(1 << 16, dtype=np.uint32)
    high = low << 16
    for _ in range(32):
        low, high = (sums >> 1 ^ _POLYNOMIAL * (sums & 1) for sums in (low, high))
    return low, high
