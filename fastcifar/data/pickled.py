"""Reader of the Python version of CIFAR-10 and CIFAR-100, which is pickles, without running anything in them.

A pickle is a program whose instructions may call any function by name, and Python's own reader runs it. Here a machine
of our own does, which knows the instructions that these files need, five names, and no function: an array is made of
its checked type, shape and bytes, after the program has ended.

Protocols 2 to 5 are read: Python 2 wrote the official files in protocol 2, other people have written them again since.
"""

from __future__ import annotations

import io
import math
import pickletools
from typing import Any, BinaryIO

import numpy as np

from fastcifar.errors import UserError


class _Refused(ValueError):
    """A pickle that holds what is not admitted. The message says what."""


def read_pickle(
    name: str, size: int, file: BinaryIO, records: int, pixels: int, field: str = "labels", title: str = "CIFAR-10"
) -> tuple[np.ndarray, np.ndarray]:
    """Read the labels int64 `[records]` and pixels uint8 `[records, pixels]` of one batch.

    name: its name in errors.
    size: bytes of `file`.
    records: number of images.
    pixels: bytes of an image.
    field: the name of the labels in it.
    title: the data set's name in errors.

    Raises UserError for a pickle that holds anything else or calls any function.
    """
    most = 2 * records * pixels + (1 << 20)  # bytes in protocol 2 as Python 3 writes it: half of them take two
    if size > most:
        raise UserError(f"{name} is {size:,} bytes; allowed: up to {most:,} for {records:,} images")
    instructions = 10 * records + 1000  # a label is one, the name of an image two to six
    content = file.read(size)
    try:
        batch = _load(content, instructions)
        del content  # its bytes and the array of them are enough
        if type(batch) is not dict:
            raise _Refused(f"it holds a {type(batch).__name__} and not a dictionary")
        fields = {key.decode("latin1") if type(key) is bytes else key: value for key, value in batch.items()}
        values, labels = fields.get("data"), fields.get(field)
        if len(fields) != len(batch):
            raise _Refused("it has a field twice")
        if type(values) is not _Array or values.dtype != "|u1" or values.shape != (records, pixels):
            raise _Refused(f"its 'data' is not a uint8 array [{records}, {pixels}]")
        if isinstance(labels, _Array) and labels.shape == (records,):
            labels = labels.values()
        elif not isinstance(labels, list | tuple) or len(labels) != records or {type(each) for each in labels} != {int}:
            raise _Refused(f"its {field!r} are not a list of {records} ints")
        return np.array(labels, dtype=np.int64), values.values()
    except (IndexError, KeyError):
        reason = "an instruction takes what is not there"
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise UserError(f"{name} is no batch of {title}: {reason}")


_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE"),
)
"""Instructions that push their argument."""
_PUSHED = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple}
_PUSHED |= {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OTHERS = (
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET SETITEM SETITEMS APPEND APPENDS TUPLE "
    "GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_ADMITTED = {*_VALUES, *_PUSHED, *_TUPLES, *_OTHERS.split()}
_INSTRUCTIONS = {each.code.encode("latin1"): each for each in pickletools.opcodes}
_AS_BYTES = {"BINSTRING": pickletools.read_bytes4, "SHORT_BINSTRING": pickletools.read_bytes1}
"""Readers of Python 2's strings, which are bytes; pickletools' own make str of them, a copy more."""


def _load(data: bytes, most: int) -> object:
    """Return what a pickle of dictionaries, lists, tuples, ints, bytes, strings and arrays of integers (as `_Array`)
    makes.

    most: instructions that it may have.

    Raises _Refused for what is not admitted, and other errors for damaged pickles.
    """
    file, stack, marks, memo = io.BytesIO(data), [], [], {}
    spare = len(data)  # bytes that calls of `encode` may make
    frame_end = 0

    def pop(count: int = 1) -> list[Any]:
        """Take the last values, of those since the last mark."""
        _expect(len(stack) - count >= (marks[-1] if marks else 0), "an instruction takes what is not there")
        values = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return values

    def pop_marked() -> list[Any]:
        values = pop(len(stack) - marks[-1])
        marks.pop()
        return values

    def top() -> Any:
        [value] = pop()
        stack.append(value)
        return value

    for _ in range(most):
        position = file.tell()
        code = file.read(1)
        if not code:
            raise _Refused("pickle exhausted before seeing STOP")
        name = _INSTRUCTIONS[code].name if code in _INSTRUCTIONS else repr(code)
        if name not in _ADMITTED:
            raise _Refused(f"instruction {name} at byte {position} is not admitted")
        described = _INSTRUCTIONS[code].arg
        read = _AS_BYTES.get(name, described and described.reader)
        argument: Any = read(file) if read else None
        _expect(not position < frame_end < file.tell(), "an instruction crosses the end of a frame")
        if name in _VALUES:
            stack.append(argument)
        elif name in _PUSHED:
            stack.append(_PUSHED[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = top()
        elif name in ("BINPUT", "LONG_BINPUT"):
            _expect(argument < most, f"{name} {argument} at byte {position} exceeds its instructions")
            memo[argument] = top()
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(pop_marked()))
        elif name in ("APPEND", "APPENDS"):
            values = pop() if name == "APPEND" else pop_marked()
            _expect(type(top()) is list, "values for a list that is none")
            top().extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = pop(2) if name == "SETITEM" else pop_marked()
            filled = top()
            _expect(type(filled) is dict and len(values) % 2 == 0, "values for a dictionary that is none")
            for key, value in zip(values[::2], values[1::2], strict=True):
                _expect(type(key) in (bytes, str), "a key that is no string")
                _expect(key not in filled, "a key twice")
                filled[key] = value
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            path = ".".join(argument.split(" ", 1) if argument else pop(2))  # TypeError for what is no str
            _expect(path in _NAMES, f"{path[:80]!r} is not admitted, only numpy arrays of integers are")
            stack.append(_NAMES[path])
        elif name == "REDUCE":
            called, arguments = pop(2)
            _expect(type(called) is _Name and type(arguments) is tuple, "a call of what is no name")
            made = called.call(*arguments)
            if type(made) is bytes:
                spare -= len(made)
                _expect(spare >= 0, "more bytes than it has")
            stack.append(made)
        elif name == "BUILD":
            [state], filled = pop(), top()
            _expect(type(filled) in (_Array, _Dtype), "a state where there is none")
            filled.set_state(state)
        elif name == "PROTO":
            _expect(argument <= 5, f"protocol {argument}; allowed: up to 5")
        elif name == "FRAME":
            _expect(position >= frame_end, "a frame in a frame")
            frame_end = file.tell() + argument
            _expect(frame_end <= len(data), "a frame that exceeds the pickle's length")
        else:  # STOP
            _expect(file.tell() == len(data), "bytes follow its end")
            _expect(len(stack) == 1 and not marks, "it ends with more than one value")
            return stack[0]
    raise _Refused(f"more than {most:,} instructions")


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise _Refused(otherwise)


class _Array:
    """What stands for an array in a pickle: its type, shape, order and bytes, as soon as they come."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    data: bytes | bytearray | None = None
    is_fortran = False

    def set_state(self, state: object) -> None:
        """Take the state as numpy's `__reduce__` gives it: version, shape, type, whether in Fortran order, bytes."""
        _expect(type(state) is tuple and len(state) == 5 and state[0] == 1, "an array's state of another kind")
        _, shape, dtype, is_fortran, data = state  # pyright: ignore[reportGeneralTypeIssues]
        self.fill(shape, dtype, is_fortran, data)

    def fill(self, shape: Any, dtype: Any, is_fortran: object, data: Any) -> None:
        _expect(self.data is None, "an array's state twice")
        is_plain = type(dtype) is _Dtype and type(data) in (bytes, bytearray) and type(shape) is tuple
        _expect(is_plain and type(is_fortran) in (bool, int), "an array that is not a shape and bytes of integers")
        _expect(len(shape) <= 4, "an array of many dimensions")
        is_described = all(type(side) is int and side >= 0 for side in shape) and math.prod(shape) * dtype.size == len(
            data
        )
        _expect(is_described, f"an array of {len(data):,} bytes that its shape does not describe")
        self.dtype = dtype.order + dtype.code
        self.shape, self.is_fortran, self.data = shape, bool(is_fortran), data

    def values(self) -> np.ndarray:
        # A copy: the bytes are read-only, and torch needs writable memory.
        flat = np.frombuffer(self.data or b"", dtype=self.dtype)
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C").copy(order="C")


class _Dtype:
    """What stands for one of numpy's types of integers: its code, as "i8", and byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.size = code, int(code[1])
        self.order: Any = "|" if self.size == 1 else "="

    def set_state(self, state: object) -> None:
        """Take the state as numpy gives it: version, byte order, and what integers do not have."""
        is_plain = type(state) is tuple and len(state) == 8 and repr(state[2:]) == repr(_PLAIN)
        is_plain = is_plain and type(state[0]) is int and state[0] in (2, 3)  # pyright: ignore[reportIndexIssue]
        order: Any = state[1] if is_plain else None  # pyright: ignore[reportIndexIssue]
        order = order.decode("latin1") if type(order) is bytes else order
        _expect(order in (("|",) if self.size == 1 else ("<", ">")), "a type with other properties than an integer's")
        self.order = order


_PLAIN = (None, None, None, -1, -1, 0)


class _Name:
    """A name that a pickle may call, or numpy's class of arrays. Nothing of the real one is imported."""

    def __init__(self, call) -> None:
        self.call = call


def _new_array(kind: object, shape: object, code: object) -> _Array:
    """Stand for `numpy.core.multiarray._reconstruct`: an array that is empty until its state comes."""
    is_empty = repr(shape) == "(0,)"  # which False is equal to, too
    _expect(kind is _NDARRAY and is_empty and code in (b"b", "b"), "an array of another class")
    return _Array()


def _new_dtype(code: object, *flags: object) -> _Dtype:
    """Stand for `numpy.dtype`."""
    shown = code.decode("latin1") if type(code) is bytes else code if type(code) is str else "another"
    _expect(shown in _INTEGERS, f"an array of type {shown[:20]!r}, only integers are admitted")
    _expect(len(flags) <= 2 and all(type(flag) in (bool, int) for flag in flags), "a type with other properties")
    return _Dtype(shown)


_INTEGERS = [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)]


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    """Stand for `numpy.core.numeric._frombuffer`, by which protocol 5 makes an array of bytes."""
    _expect(order in ("C", "F"), "an array in another order")
    array = _Array()
    array.fill(shape, dtype, order == "F", data)
    return array


def _encode(text: object, encoding: object) -> bytes:
    """Stand for `_codecs.encode`, with which Python 3 writes bytes in protocol 2, as characters in "latin1"."""
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise _Refused("bytes that are not written as latin1")
    return text.encode("latin1")


def _no_call(*_: object) -> None:
    raise _Refused("a call of numpy's class of arrays")


_NDARRAY = _Name(_no_call)
_NAMES = {
    **{"numpy.ndarray": _NDARRAY, "numpy.dtype": _Name(_new_dtype), "_codecs.encode": _Name(_encode)},
    **{f"numpy.{core}.multiarray._reconstruct": _Name(_new_array) for core in ("core", "_core")},  # _core: of numpy 2
    **{f"numpy.{core}.numeric._frombuffer": _Name(_from_buffer) for core in ("core", "_core")},
}
