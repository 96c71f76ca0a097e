"""Reader of arrays of numbers in MAT-files of level 5 (MATLAB 5 to 7.2), as SVHN's files are.

It believes nothing of what a file says: `scipy.io.loadmat` allocates what the file claims and makes whatever objects it
holds. The format is MathWorks' (MAT-File Format): 128 bytes of header, then elements, each a type and a size in four
bytes each (or, where its content is at most four bytes long, in two bytes each) and its content, filled up to eight
bytes. An element of type 15 is another one, packed by zlib; one of type 14 is a variable: elements for its class, its
shape, its name and its values.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastcifar.data.archives import damage, fill
from fastcifar.errors import UserError

_PIECE = 1 << 20
"""Bytes that are read at once."""
_VARIABLES = 100
"""Variables that a file may have."""
_MATRIX, _PACKED = 14, 15
_INT8, _INT32, _UINT32 = 1, 5, 6
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of values by their number. Those of a variable may be narrower than its class."""
_NUMBERS = range(6, 16)
"""Classes of arrays of numbers; others are cells, structures, objects, texts and sparse arrays."""
_COMPLEX = 0x800


def read_mat(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return variables of a MAT-file by name, each an array in Fortran's order, of the type that it is stored in.

    shapes: the shape that each must have. Other variables are passed over.

    Raises UserError for other arrays, before their memory is allocated, and for a damaged file.
    """
    found: dict[str, np.ndarray] = {}
    with damage(str(path)), open(path, "rb") as file:
        head = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        if order is None or struct.unpack(order + "H", head[124:126])[0] != 0x0100:
            raise UserError(f"{path} is no MAT-file of level 5; allowed: as MATLAB's save -v6 or -v7 writes it")
        for _ in range(_VARIABLES):
            tag = file.read(8)
            if not tag:
                break
            kind, size = struct.unpack(order + "II", tag)
            end = file.tell() + size
            if kind not in (_MATRIX, _PACKED):
                raise ValueError(f"it holds an element of type {kind}")
            content = _Content(file, size, kind == _PACKED, order)
            name, array = _variable(content, path, shapes)
            if array is not None:
                content.finish()
                if name in found:
                    raise ValueError(f"{name} is there twice")
                found[name] = array
            file.seek(end)
    if lacking := shapes.keys() - found.keys():
        raise UserError(f"{path} lacks {' and '.join(sorted(lacking))}; allowed: with {' and '.join(shapes)}")
    return found


def _variable(content: _Content, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, np.ndarray | None]:
    """Read a variable: its name, and its values where `shapes` has it."""
    if content.is_packed:
        kind, _, _ = content.tag()
        if kind != _MATRIX:
            raise ValueError(f"it holds a packed element of type {kind}")
    flags = content.small(_UINT32, "I", 8)
    dimensions = content.small(_INT32, "i", 128)
    name = bytes(content.small(_INT8, "B", 256)).decode("latin1")
    if name not in shapes:
        return name, None
    kind, size, inline = content.tag()
    if not flags or flags[0] & 0xFF not in _NUMBERS or flags[0] & _COMPLEX or kind not in _STORED:
        raise ValueError(f"{name} is no array of real numbers")
    dtype, shape = np.dtype(content.order + _STORED[kind]), shapes[name]
    if dimensions != shape:
        raise UserError(f"{path}: {name} is {dtype.name} {list(dimensions)}; allowed: {list(shape)}")
    if size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} is {size:,} bytes; its shape needs {math.prod(shape) * dtype.itemsize:,}")
    array = np.empty(shape[::-1], dtype)
    if inline is None:
        fill(array, content)
        content.read(-size % 8)
    else:
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(inline, np.uint8)
    return name, array.T


class _Content:
    """The content of an element, unpacked where it is packed."""

    def __init__(self, file: BinaryIO, size: int, is_packed: bool, order: str) -> None:
        self.is_packed, self.order = is_packed, order
        self._file, self._left = file, size
        self._unpack = zlib.decompressobj()

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises EOFError where there are fewer."""
        content = self._next(size)
        while len(content) < size:
            more = self._next(size - len(content))
            if not more:
                raise EOFError("it ends too early")
            content += more
        return content

    def readinto(self, buffer: memoryview) -> int:
        content = self._next(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _next(self, most: int) -> bytes:
        """Return up to `most` bytes, none at the end."""
        if not self.is_packed or not most:
            return self._raw(most)
        while True:
            packed = self._unpack.unconsumed_tail or self._raw(_PIECE)
            content = self._unpack.decompress(packed, most)
            if content or self._unpack.eof or not packed:
                return content

    def _raw(self, most: int) -> bytes:
        content = self._file.read(min(most, self._left))
        self._left -= len(content)
        return content

    def tag(self) -> tuple[int, int, bytes | None]:
        """Return an element's type, its size, and its content where that is in the tag."""
        tag = self.read(8)
        kind, size = struct.unpack(self.order + "II", tag)
        if small := kind >> 16:
            if small > 4:
                raise ValueError(f"a short element is {small} bytes")
            return kind & 0xFFFF, small, tag[4 : 4 + small]
        return kind, size, None

    def small(self, kind: int, code: str, most: int) -> tuple[int, ...]:
        """Return the numbers of a short element of this type, of up to `most` bytes."""
        has_kind, size, content = self.tag()
        if has_kind != kind or size > most or size % struct.calcsize(code):
            raise ValueError(f"an element is of type {has_kind} and {size:,} bytes; allowed: type {kind}, {most} bytes")
        if content is None:
            content = self.read(size + -size % 8)[:size]
        return struct.unpack(f"{self.order}{size // struct.calcsize(code)}{code}", content)

    def finish(self) -> None:
        """Raise ValueError unless this is the end, where zlib meets its checksum."""
        if self._next(1) or (self.is_packed and not self._unpack.eof) or self._unpack.unused_data or self._left:
            raise ValueError("bytes follow the end of a variable, or are lacking")
