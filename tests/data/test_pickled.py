import builtins
import functools
import io
import operator
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data.cifar import load_release
from fastcifar.data.pickled import read_pickle
from fastcifar.errors import UserError

RECORDS, PIXELS = 20, 3072
LABELS = [place % 10 for place in range(RECORDS)]
ARRAY = np.random.default_rng(3).integers(0, 256, (RECORDS, PIXELS), dtype=np.uint8)


def read(content):
    return read_pickle("batch", len(content), io.BytesIO(content), RECORDS, PIXELS)


def refused(content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(content)
    assert str(caught.value).startswith("batch ") and "\n" not in str(caught.value)


class Call:
    """Pickles as a call of `function` on `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def batch(**changes):
    return {b"batch_label": b"training batch 1 of 5", b"labels": LABELS, b"data": ARRAY} | {
        name.encode(): value for name, value in changes.items()
    }


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_a_batch_as_python_2_wrote_it_is_read_as_pickle_would(python2_pickle, fortran):
    content = python2_pickle(LABELS, ARRAY, fortran)
    expected = pickle.loads(content, encoding="bytes")
    labels, pixels = read(content)
    assert expected[b"labels"] == labels.tolist() == LABELS
    assert np.array_equal(expected[b"data"], ARRAY) and np.array_equal(pixels, ARRAY)
    assert labels.dtype == np.int64 and pixels.dtype == np.uint8
    assert pixels.flags.writeable and pixels.flags.c_contiguous


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("keys", ["bytes", "strings"])
def test_a_batch_as_python_3_writes_it_is_read(protocol, keys):
    values = batch() if keys == "bytes" else {key.decode(): value for key, value in batch().items()}
    labels, pixels = read(pickle.dumps(values, protocol))
    assert labels.tolist() == LABELS and np.array_equal(pixels, ARRAY)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("kind", [tuple, *("u1", "i1", "<i2", ">i4", "<i8", ">u8")])
def test_labels_may_be_a_tuple_or_an_array_of_integers(protocol, kind):
    given = np.array(LABELS, kind) if isinstance(kind, str) else tuple(LABELS)
    labels, pixels = read(pickle.dumps(batch(labels=given), protocol))
    assert labels.tolist() == LABELS and labels.dtype == np.int64 and np.array_equal(pixels, ARRAY)


HOSTILE = {
    "system": (os.system, "touch executed"),
    "eval": (eval, "open('executed', 'w')"),
    "exec": (exec, "open('executed', 'w')"),
    "open": (open, "executed", "w"),
    "Popen": (subprocess.Popen, "touch executed"),
    "getattr": (getattr, "os", "system"),
    "__import__": (builtins.__import__, "os"),
    "attrgetter": (operator.attrgetter, "system"),
    "partial": (functools.partial, print, "executed"),
    "tofile": (np.ndarray.tofile, ARRAY, "executed"),
    "fromfile": (np.fromfile, "/etc/hostname", "uint8"),
    "load": (np.load, "executed.npy"),
    "memmap": (np.memmap, "executed", "uint8", "w+"),
    "bytearray": (bytearray, 5),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_nothing_in_it_runs(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    refused(pickle.dumps(Call(*HOSTILE[name]), protocol), "is no batch of CIFAR-10: .*not admitted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["labels", "data", "batch_label"])
def test_a_hostile_call_is_refused_by_name_wherever_it_is_hidden(tmp_path, monkeypatch, field):
    monkeypatch.chdir(tmp_path)
    call = Call(os.system, "touch executed")
    content = pickle.dumps(batch(**{field: [1, call] if field == "labels" else call}), 2)
    refused(content, rf"'{os.system.__module__}.system' is not admitted, only numpy arrays of integers are")
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_batch_in_a_data_folder_is_refused_by_its_file(small, tmp_path):
    (small.python / "data_batch_2").write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path}/executed"), 2))
    with pytest.raises(UserError, match=r"data_batch_2 is no batch of CIFAR-10: .*system' is not admitted"):
        load_release(small.release, small.python)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\2cnumpy\ndtype.__class__\n.", "dtype.__class__' is not admitted"),
        (b"\x80\4\x8c\5numpy\x8c\x09core.load\x93.", "numpy.core.load' is not admitted"),
        (b"(S'touch executed'\nios\nsystem\n.", "instruction STRING"),
        (b"(ios\nsystem\n.", "instruction INST"),
        (b"(cos\nsystem\no.", "'os.system' is not admitted"),
        (b"(cnumpy\nndarray\no.", "instruction OBJ"),
        (b"\x80\2cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
        (b"\x80\2\x82\1.", "instruction EXT1"),
        (b"Pexecuted\n.", "instruction PERSID"),
        (b"\x80\5\x96" + struct.pack("<Q", 2**40) + b".", "expected 1099511627776 bytes in a bytearray8"),
        (b"\x80\2Nr\xff\xff\xff\xff.", "LONG_BINPUT 4294967295 at byte 3 exceeds its instructions"),
        (b"\x80\2c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0rot13\x86R.", "bytes that are not written as latin1"),
        (b"\x80\2T\xff\xff\xff\x7f.", "expected 2147483647 bytes"),
        (b"\x80\2N.", "it holds a NoneType and not a dictionary"),
        (b"\x80\2}.", "its 'data' is not a uint8 array"),
        (b"", "pickle exhausted before seeing STOP"),
    ],
)
def test_crafted_instructions_are_refused(content, message):
    refused(content, message)


def test_stand_ins_cannot_be_changed_by_a_pickle(python2_pickle):
    method = b"X\7\0\0\0__new__"
    for name in (b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct", b"_codecs\nencode", b"numpy\nndarray"):
        for state in (b"}" + method + b"Ns", b"N}" + method + b"Ns\x86"):  # attributes, and slots
            refused(b"\x80\2c" + name + b"\n" + state + b"b.", "is no batch of CIFAR-10")
    for content in (python2_pickle(LABELS, ARRAY), pickle.dumps(batch(), 2)):
        labels, pixels = read(content)
        assert labels.tolist() == LABELS and np.array_equal(pixels, ARRAY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS[:-1]}, "its 'labels' are not a list of 20 ints"),
        ({"labels": [*LABELS[:-1], True]}, "its 'labels' are not a list of 20 ints"),
        ({"labels": [*LABELS[:-1], 2**70]}, "too large"),
        ({"labels": np.array(LABELS[:-1])}, "its 'labels' are not a list of 20 ints"),
        ({"labels": np.array([LABELS])}, "its 'labels' are not a list of 20 ints"),
        ({"labels": np.array(LABELS, float)}, "an array of type 'f8', only integers are admitted"),
        ({"labels": b"0" * RECORDS}, "its 'labels' are not a list of 20 ints"),
        ({"data": ARRAY[:, :-1]}, r"its 'data' is not a uint8 array \[20, 3072\]"),
        ({"data": ARRAY.reshape(-1)}, r"its 'data' is not a uint8 array \[20, 3072\]"),
        ({"data": ARRAY.tobytes()}, r"its 'data' is not a uint8 array \[20, 3072\]"),
        ({"data": ARRAY.astype(np.int16)}, r"its 'data' is not a uint8 array \[20, 3072\]"),
        ({"data": ARRAY.astype(object)}, "an array of type 'O8', only integers are admitted"),
        ({"data": np.zeros((2, 2), "u1,O")}, "an array of type 'V9', only integers are admitted"),
        ({"data": np.ma.masked_array(ARRAY)}, "is not admitted"),
    ],
)
def test_a_batch_with_other_values_is_refused(changes, message):
    refused(pickle.dumps(batch(**changes), 2), message)


def test_an_array_that_claims_more_than_it_holds_is_refused(python2_pickle):
    content = python2_pickle(LABELS, ARRAY)
    shape = b"M" + struct.pack("<H", RECORDS) + b"M" + struct.pack("<H", PIXELS)
    assert content.count(shape) == 1
    for claimed in (b"J\0\0\0\x40J\0\0\0\x40", b"J\xff\xff\xff\xffJ\0\x10\xff\xff"):  # huge, and negative twice
        refused(content.replace(shape, claimed), "an array of 61,440 bytes that its shape does not describe")


def test_a_batch_far_larger_than_its_images_is_refused_unread():
    class Unread(io.BytesIO):
        def read(self, *_):
            raise AssertionError("read")

    with pytest.raises(UserError, match="batch is 1,000,000,000 bytes; allowed: up to"):
        read_pickle("batch", 10**9, Unread(), RECORDS, PIXELS)


@settings(max_examples=60)
@given(st.integers(0, 2**16), st.integers(1, 255))
def test_a_damaged_batch_is_read_or_refused_and_nothing_else(python2_pickle, place, change):
    content = bytearray(python2_pickle(LABELS, ARRAY))
    # Half of the places in the instructions before the pixels, which are most of the bytes.
    place = place % 400 if place % 2 else place % len(content)
    content[place] ^= change
    try:
        labels, pixels = read(bytes(content))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert labels.shape == (RECORDS,) and pixels.shape == (RECORDS, PIXELS) and pixels.dtype == np.uint8


@settings(max_examples=40)
@given(st.integers(0, 2**16))
def test_a_truncated_batch_is_refused(python2_pickle, length):
    content = python2_pickle(LABELS, ARRAY)
    refused(content[: length % len(content)], "is no batch of CIFAR-10")
