"""Reader of CIFAR-10's Python version, which is pickles, without running anything in them.

A pickle is a program whose instructions may call any function by name. Two checks prevent that: only the instructions
that these files need are admitted, and every name in it is replaced by a class of ours or refused. Not even numpy is
called by a pickle: the array is made from a checked type, shape and bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any, BinaryIO

import numpy as np

from fastcifar.errors import UserError

_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET EMPTY_DICT SETITEM SETITEMS EMPTY_LIST "
    "APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 "
    "BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINUNICODE SHORT_BINUNICODE GLOBAL STACK_GLOBAL REDUCE BUILD"
)
"""The instructions of protocols 2 to 4 that make dictionaries, lists, tuples, ints, bytes, strings and arrays."""


def read_pickle(name: str, size: int, file: BinaryIO, records: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the labels int64 `[records]` and pixels uint8 `[records, pixels]` of one batch.

    name: its name in errors.
    size: bytes of `file`.
    records: number of images.
    pixels: bytes of an image.

    Raises UserError for a pickle that holds anything else or calls any function.
    """
    most = 4 * records * pixels + (1 << 20)
    if size > most:
        raise UserError(f"{name} is {size:,} bytes; allowed: up to {most:,} for {records:,} images")
    try:
        batch = loads(file.read())
        if type(batch) is not dict:
            raise pickle.UnpicklingError(f"it holds a {type(batch).__name__} and not a dictionary")
        fields = {key.decode("latin1") if type(key) is bytes else key: value for key, value in batch.items()}
        values = fields.get("data")
        labels = fields.get("labels")
        if not isinstance(values, _Array) or values.array is None or values.array.shape != (records, pixels):
            raise pickle.UnpicklingError(f"its 'data' is not a uint8 array [{records}, {pixels}]")
        if type(labels) is not list or len(labels) != records or {type(label) for label in labels} != {int}:
            raise pickle.UnpicklingError(f"its 'labels' are not a list of {records} ints")
        return np.array(labels, dtype=np.int64), values.array
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(f"{name} is no batch of CIFAR-10: {' '.join(str(error).split()) or 'empty'}") from error


def loads(data: bytes) -> object:
    """Load a pickle of dictionaries, lists, tuples, ints, bytes, strings and uint8 arrays (as `_Array`), nothing else.

    Raises pickle.UnpicklingError, with the reason; for damaged pickles other errors too.
    """
    admitted = set(_INSTRUCTIONS.split())
    for instruction, argument, position in pickletools.genops(data):
        if instruction.name not in admitted:
            raise pickle.UnpicklingError(f"instruction {instruction.name} at byte {position} is not admitted")
        if instruction.name.endswith("PUT") and (argument or 0) > len(data):  # it would allocate so many entries
            said = f"{instruction.name} {argument} at byte {position}"
            raise pickle.UnpicklingError(f"{said} exceeds the pickle's length")
    return _Unpickler(io.BytesIO(data), encoding="bytes").load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        admitted = _ADMITTED.get((module, name))
        if admitted is None:
            raise pickle.UnpicklingError(f"{f'{module}.{name}'[:80]!r} is not admitted, only uint8 numpy arrays are")
        return admitted


class _StandIn:
    """A class that takes the place of a name in a pickle. The BUILD instruction calls `__setstate__` if there is one;
    without, it could set any attribute, of our classes too."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a state where there is none")


class _Array(_StandIn):
    """Stand-in for `numpy.core.multiarray._reconstruct`: an array that is empty until its state comes."""

    array: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        """Ignore the class, shape and type of the empty array."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or type(data) is not bytes or type(shape) is not tuple:
            raise pickle.UnpicklingError("an array that is not a shape and bytes of uint8")
        if any(type(side) is not int or side < 0 for side in shape) or math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"an array of {len(data):,} bytes that its shape does not describe")
        # A copy: the bytes are read-only, and torch needs writable memory.
        self.array = np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if fortran else "C").copy(order="C")


class _Dtype(_StandIn):
    """Stand-in for `numpy.dtype`, of which only uint8 is admitted."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of type {str(code)[:20]!r}, only uint8 is admitted")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment: single bytes have none."""


class _Encode(_StandIn):
    """Stand-in for `_codecs.encode`, with which Python 3 writes bytes in protocol 2, as characters in "latin1"."""

    def __new__(cls, text: object, encoding: object) -> bytes:
        if type(text) is not str or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("bytes that are not written as latin1")
        return text.encode("latin1")


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # its name in numpy 2
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
}
