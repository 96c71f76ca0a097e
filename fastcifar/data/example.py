"""`tf.train.Example` in the wire format of Protocol Buffers: an image and its label, in bytes and back.

An Example's field 1 is Features, whose field 1 is an entry for each feature: its name (1) and a Feature (2), a list of
bytes (1), of floats (2) or of int64 (3), whose field 1 is the values.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from fastcifar.errors import brief

_BYTES, _FLOATS, _INTEGERS = 1, 2, 3


def encode(image: bytes, label: int) -> bytes:
    """Return the Example of the features `image`, bytes, and `label`, an int64."""
    return _field(1, _feature(b"image", _BYTES, image) + _feature(b"label", _INTEGERS, _varint(label)))


@functools.cache
def _around(size: int) -> tuple[bytes, bytes]:
    """Return what `encode` puts before and behind an image of `size` bytes but for its last byte, a label below 128."""
    behind = _feature(b"label", _INTEGERS, _varint(0))
    return encode(bytes(size), 0)[: -size - len(behind)], behind[:-1]


def decode(example: memoryview, size: int = 0) -> tuple[memoryview, int]:
    """Return the bytes of the feature `image` and the number of `label`, -1 where there is none.

    size: bytes that the image is expected to have: an Example of such an image that `encode` made is not parsed.

    Raises ValueError for what is no Example, and for one without one such image. Of a name that is there twice the last
    counts, as in Protocol Buffers.
    """
    if size:
        before, behind = _around(size)
        end = len(before) + size
        frame = example[: len(before)], example[end:-1]
        if frame == (before, behind) and example[-1] < 128:
            return example[len(before) : end], example[-1]
    features: dict[str, dict[int, list[Any]]] = {}
    for message in _fields(example).get(1, []):
        for entry in _fields(message).get(1, []):
            found = _fields(entry)
            names, values = found.get(1, [b""]), found.get(2, [memoryview(b"")])
            if len(values) > 1:  # which would be merged
                raise ValueError("one of its features has two values")
            features[str(names[-1], "utf-8")] = _fields(values[0])
    image, label = features.get("image", {}), features.get("label", {})
    if _FLOATS in image:
        raise ValueError("its image is a list of floats; allowed: bytes of uint8 [H, W, 3]")
    images = [value for values in image.get(_BYTES, []) for value in _fields(values).get(1, [])]
    labels = [value for values in label.get(_INTEGERS, []) for value in _integers(values)]
    if len(images) != 1 or len(image) != 1 or len(labels) > 1 or [*label] != [_INTEGERS] * len(labels):
        allowed = "image, one text of bytes, and label, one integer"
        raise ValueError(f"it has the features {brief([*features])}; allowed: {allowed}")
    number = labels[0] if labels else -1
    return memoryview(images[0]), number - 2**64 if number >= 2**63 else number


def _feature(name: bytes, kind: int, value: bytes) -> bytes:
    return _field(1, _field(1, name) + _field(2, _field(kind, _field(1, value))))


def _field(number: int, content: bytes) -> bytes:
    """Return a field of bytes, of a message or of packed integers: the wire format knows no difference."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    value, found = value % 2**64, bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _integers(values: memoryview) -> Iterator[int]:
    """Give the numbers of an Int64List, packed or not."""
    for value in _fields(values).get(1, []):
        if isinstance(value, int):
            yield value
            continue
        place = 0
        while place < len(value):
            number, place = _read_varint(value, place)
            yield number


def _fields(message: memoryview) -> dict[int, list[Any]]:
    """Return the values of each field of a message: bytes, or integers. Raises ValueError where it is none."""
    found: dict[int, list[Any]] = {}
    place = 0
    while place < len(message):
        tag, place = _read_varint(message, place)
        kind, number = tag & 7, tag >> 3
        if not 0 < number < 1 << 29:
            raise ValueError(f"a field has the number {number}")
        if kind == 0:
            value, place = _read_varint(message, place)
        elif kind in (1, 2, 5):
            size, place = _read_varint(message, place) if kind == 2 else (8 if kind == 1 else 4, place)
            value, place = message[place : place + size], place + size
            if place > len(message):
                raise ValueError("a field is longer than its message")
        else:
            raise ValueError(f"a field is of the kind {kind}; allowed: 0, 1, 2, 5")
        found.setdefault(number, []).append(value)
    return found


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return the number at `place` and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("a number ends too early")
        byte, place = message[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value % 2**64, place
    raise ValueError("a number is longer than 10 bytes")
