"""Reader of IDX files, the format of MNIST (LeCun, Cortes and Burges), packed by gzip or not.

Four bytes (0, 0, 8 for unsigned bytes, the number of axes), each axis' length in four bytes, largest first, and the
values.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from fastcifar.data.archives import damage, fill
from fastcifar.errors import UserError

_BYTES = b"\0\0\x08"


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array in an IDX file, which must be uint8 of this `shape`.

    Raises UserError for another, before its memory is allocated, and for a damaged file.
    """
    with damage(str(path)), open(path, "rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"  # whatever it is called: browsers unpack some .gz
        plain.seek(0)
        file = gzip.GzipFile(fileobj=plain) if packed else plain
        head = file.read(4 + 4 * len(shape))
        if head != _BYTES + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape):
            is_idx = head.startswith(_BYTES) and len(head) == 4 + 4 * len(shape) and head[3] == len(shape)
            found = f"uint8 {list(struct.unpack_from(f'>{len(shape)}I', head, 4))}" if is_idx else "something else"
            raise UserError(f"{path} is {found}; allowed: an IDX file, uint8 {list(shape)}")
        array = np.empty(shape, dtype=np.uint8)
        fill(array, file)
        if file.read(1):  # gzip meets its checksum at the end
            raise ValueError("bytes follow its end")
        return array
