"""A batch of the Python version, which is a pickle: a program."""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import struct
from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.pickled import read_pickle
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line
from tests.fuzz.mutations import COUNTS
from tests.fuzz.releases import PIXELS, RECORDS, python_batch

CASES = 500
BOMBS = {
    "lists in lists": b"\x80\2" + b"]" * 3000 + b"a" * 2999 + b".",
    "many lists": b"\x80\2(" + b"]" * 60_000 + b"l.",
    "tuples in tuples as a key": b"\x80\2})" + b"\x85" * 60_000 + b"Ns.",
    "deep tuples": b"\x80\2)" + b"\x85" * 60_000 + b".",
    "a memo that is large": b"\x80\2Nr" + struct.pack("<I", 70_000) + b".",
    "a memo that is huge": b"\x80\2Nr\xff\xff\xff\x7f.",
    "text of a huge size": b"\x80\4\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "bytes of a huge size": b"\x80\4\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "an array of bytes of a huge size": b"\x80\5\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "a number of a huge size": b"\x80\2\x8b\xff\xff\xff\x7f\1.",
    "a frame of a huge size": b"\x80\4\x95" + struct.pack("<Q", 2**50) + b"N.",
    "an extension": b"\x80\2\x84\xff\xff\xff\x7f.",
    "a persistent id": b"\x80\2X\1\0\0\0aQ.",
    "a buffer from outside": b"\x80\5\x97\x98.",
    "a system call": b"\x80\4\x8c\5posix\x8c\6system\x93\x8c\x10touch ../escaped\x85R.",
    "a system call of protocol 0": b"cos\nsystem\n(S'touch ../escaped'\ntR.",
    "a chain of attributes": b"\x80\4\x8c\x08builtins\x8c\x11getattr.__class__\x93)R.",
    "a class of ours": b"\x80\2cfastcifar.data.pickled\nread_pickle\n.",
    "an instance": b"(ios\nsystem\n.",
    "a state for a name": b"\x80\2cnumpy\ndtype\n}X\1\0\0\0aNsb.",
    "a name that doubles itself": b"\x80\4)q\0" + b"h\0h\0\x86q\0" * 60 + b"h\0h\0\x93.",
    "a type that doubles itself": b"\x80\2cnumpy\ndtype\n)q\0" + b"h\0h\0\x86q\0" * 60 + b"K\0K\1\x87R.",
    "a call without end": b"\x80\2c_codecs\nencode\nq\0" + b"h\0X\1\0\0\0aX\6\0\0\0latin1\x86R" * 2000 + b".",
}
"""Whole pickles that are hostile."""


def seeds() -> dict[str, bytes]:
    made = {f"protocol {protocol}": python_batch(1, protocol) for protocol in (2, 3, 4, 5)}
    made |= {f"protocol {protocol} with str": python_batch(1, protocol, str) for protocol in (2, 5)}
    made |= {f"labels as {kind}": python_batch(1, 2, labels_as=kind) for kind in ("<i8", ">u2")}
    return {"official": python_batch(1), "columns": python_batch(1, order="F"), **made}


def mutate(data: bytes, random: Random) -> bytes:
    """Change instructions, one or more: leave out, double, move, replace or insert some, or change their counts."""
    if random.random() < 0.2:
        bomb = random.choice(list(BOMBS.values()))
        return bomb if random.random() < 0.5 else bomb[:-1] + b"0" + data[2:]
    starts = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    parts = [data[start:end] for start, end in itertools.pairwise(starts)]
    for _ in range(random.choice((1, 1, 2, 4))):
        place, choice = random.randrange(len(parts)), random.randrange(7)
        if choice == 0:
            parts.insert(place, parts[random.randrange(len(parts))])
        elif choice == 1:
            parts.insert(place, random.choice(pickletools.opcodes).code.encode("latin1"))
        elif choice == 2:
            del parts[place]
        elif choice == 3:
            other = random.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        elif choice == 4 and len(parts[place]) >= 3:
            size = random.choice((1, 2, 4, 8))
            parts[place] = parts[place][:1] + (random.choice(COUNTS) % 256**size).to_bytes(size, "little")
        elif choice == 5:
            bomb = random.choice(list(BOMBS.values()))
            parts.insert(place, bomb[2:-1])
        else:
            code = random.choice(pickletools.opcodes).code.encode("latin1")
            parts[place] = code + parts[place][1:]
        parts = parts or [b"."]
    return b"".join(parts)


def check(data: bytes, folder: Path) -> bool:
    try:
        labels, planes = read_pickle("batch", len(data), io.BytesIO(data), RECORDS, PIXELS)
    except UserError as error:
        one_line(error)
        return False
    assert labels.dtype == np.int64 and planes.dtype == np.uint8 and planes.flags.writeable
    expected_labels, expected_planes = expected(data)
    assert np.array_equal(labels, expected_labels) and np.array_equal(planes, expected_planes), "wrong data"
    return True


def expected(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and pixels of a pickle that was accepted, as Python and numpy read it. Raises AssertionError
    where it should not have been accepted."""
    file = io.BytesIO(data)
    try:
        values = _Unpickler(file, encoding="bytes").load()
    except Exception as error:
        raise AssertionError(f"accepted, though Python says: {error!r}") from error
    assert not file.read(), "bytes after the end"
    values = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in values.items()}
    return np.array(values["labels"]), values["data"]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        allowed = ("_reconstruct", "ndarray", "dtype", "_frombuffer", "encode")
        assert name in allowed, f"the name {module}.{name} was accepted"
        return super().find_class(module, name)
