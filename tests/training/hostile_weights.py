"""Files of weights that claim more than they hold, or that no writer of weights made."""

import collections
import io
import json
import pickle
import struct
import zipfile

import torch

MANY = 2_500_000_000
"""Numbers that take 10 GB as float32."""
FLOATS = struct.pack("4f", 1, 2, 3, 4)


class Values:
    """Values that a pickle claims, under a key."""

    def __init__(self, count, key="0", kind=torch.FloatStorage):
        self.claim = ("storage", kind, key, "cpu", count)


class Call:
    """A pickle's call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Pickler(pickle.Pickler):
    """torch.save's, of either format."""

    older = False

    def persistent_id(self, value):
        return (*value.claim, *[None] * self.older) if isinstance(value, Values) else None


def tensor(count, shape, strides, offset=0, **claim):
    arguments = Values(count, **claim), offset, tuple(shape), tuple(strides), False, collections.OrderedDict()
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


def pickled(value, older=False):
    file = io.BytesIO()
    pickler = Pickler(file, protocol=2)
    pickler.older = older
    pickler.dump(value)
    return file.getvalue()


def zipped(value, entries=None, compression=zipfile.ZIP_STORED):
    """Return a zip file as of torch.save: `value`, or a whole pickle, and by default 4 floats."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("a/data.pkl", value if isinstance(value, bytes) else pickled(value))
        for name, data in (entries or {"data/0": FLOATS, "version": b"3\n"}).items():
            archive.writestr(f"a/{name}", data)
    return file.getvalue()


def older(value, values=((4, FLOATS),)):
    """Return a file of the older format of `value`, or a whole pickle, with the counts and bytes of values."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [
        *(pickle.dumps(each, 2) for each in head),
        value if isinstance(value, bytes) else pickled(value, older=True),
    ]
    parts.append(pickle.dumps([str(number) for number in range(len(values))], 2))
    return b"".join([*parts, *(struct.pack("<q", count) + data for count, data in values)])


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, *offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def tied_tuples():
    """Return a dictionary whose key is a tuple of one tuple twice, and so on: its hash takes 2**60 steps."""
    return b"\x80\x02})q\0" + b"h\0\x86q\0" * 60 + b"Ns."


def doubled_entry(data):
    """Return a zip file whose directory has an entry of 1 MiB 100 times."""
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        info = archive.getinfo("a/data/0")
        for number in range(1, 100):
            again = zipfile.ZipInfo(f"a/data/{number}")
            for name in ("header_offset", "file_size", "compress_size", "CRC", "flag_bits"):
                setattr(again, name, getattr(info, name))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True
    return file.getvalue()


def marked(data, name, place=38, mark=0x10):
    """Return a zip file whose directory says something else of an entry, by default that it is a folder."""
    changed, name = bytearray(data), name.encode()
    changed[data.rindex(name) - 46 + place] |= mark
    return bytes(changed)


RIGHT = {"a": tensor(4, (2, 2), (2, 1))}
TENSOR = {name: {"a": each} for name, each in {
    "more values than there are": tensor(MANY, (MANY,), (1,)),
    "a stride of 0": tensor(4, (MANY,), (0,)),
    "one stride of 0": tensor(4, (4, MANY), (1, 0)),
    "a view beyond its values": tensor(4, (2, 2), (8, 1)),
    "an offset beyond its values": tensor(4, (2, 2), (2, 1), offset=2),
    "a negative stride": tensor(4, (2, 2), (-2, 1)),
    "a negative offset": tensor(4, (2, 2), (2, 1), offset=-4),
    "a negative count": tensor(-4, (2, 2), (2, 1)),
    "a side beyond 64 bits": tensor(4, (2**70, 0), (1, 1)),
    "thousands of sides": tensor(4, (2**60,) * 5000, (1,) * 5000),
}.items()}  # fmt: skip
CALLS = {
    "a type of more bytes than there are": {
        "a": Call(
            torch._utils._rebuild_tensor_v3,
            *(Values(4, kind=torch.UntypedStorage), 0, (4,), (1,), False, collections.OrderedDict(), torch.uint16),
        )
    },
    "a tensor of a claimed size": Call(torch.FloatTensor, MANY),
    "bytes of a claimed size": Call(bytearray, 10**10),
    "a storage of a claimed size": Call(torch.UntypedStorage, 10**10),
    "an empty tensor of any shape": Call(
        torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (MANY,), (1,), False
    ),
}
PICKLES = {
    "a key that is never hashed": tied_tuples(),
    "a dictionary that holds itself": b"\x80\x02}q\0X\5\0\0\0modelh\0s.",
    "a place far away": b"\x80\x02}r\xff\xff\xff\xff.",
    "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "no end": b"\x80\x02}",
    "nothing to take": b"\x80\x02u.",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a million lists": b"\x80\x02(" + b"]" * 1_000_000 + b"l.",
    "attributes of a list": b"\x80\x02]}b.",
    "a newer protocol": b"\x80\x04}.",
}
SAFETENSORS = {
    "a header of 10 GB": struct.pack("<Q", 10**10) + b"{}",
    "a header longer than the file": struct.pack("<Q", 3000) + b"{}",
    "values of 10 GB": safetensors({"a": entry([MANY], 0, 4 * MANY)}, bytes(16)),
    "a shape of 10 GB": safetensors({"a": entry([MANY], 0, 16)}, bytes(16)),
    "values twice": safetensors({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, bytes(16)),
    "values that nothing names": safetensors({"a": entry([2], 0, 8)}, bytes(16)),
    "values behind the end": safetensors({"a": entry([4], 16, 32)}, bytes(16)),
    "a negative side": safetensors({"a": entry([-4], 0, 16)}, bytes(16)),
    "a side beyond 64 bits": safetensors({"a": entry([2**62, 4], 0, 16)}, bytes(16)),
    "another type": safetensors({"a": entry([4], 0, 16, dtype="F99")}, bytes(16)),
    "deep JSON": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no JSON": safetensors(b"\x80\x02}."),
    "a key twice": safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry([2], 0, 8)).encode(),) * 2), bytes(16)),
    "nothing": safetensors({}),
    "zeros": bytes(1 << 20),
}
MIB = bytes(1 << 20)
ZIPS = {
    "compressed": zipped(RIGHT, compression=zipfile.ZIP_DEFLATED),
    "a bomb": zipped({"a": tensor(1 << 28, (1 << 28,), (1,))}, {"data/0": MIB * 64}, zipfile.ZIP_DEFLATED),
    "an entry again and again": doubled_entry(zipped({"a": tensor(1 << 18, (1 << 18,), (1,))}, {"data/0": MIB})),
    "fewer values": zipped(RIGHT, {"data/0": bytes(12)}),
    "more values": zipped(RIGHT, {"data/0": bytes(20)}),
    "no values": zipped(RIGHT, {"data/1": bytes(16)}),
    "no pickle": zipped(b"").replace(b"data.pkl", b"data.txt"),
    "something before it": b"PK\3\4before" + zipped(RIGHT),
    "something behind it": zipped(RIGHT) + b"behind",
    "a name in capitals": zipped(RIGHT, {"data/0": bytes(16), "DATA.PKL": pickled({})}),
    "a program": zipped(RIGHT, {"data/0": bytes(16), "constants.pkl": pickled(())}),
    "two types of the same values": zipped(
        {"a": tensor(4, (4,), (1,)), "b": tensor(2, (2,), (1,), kind=torch.DoubleStorage)}
    ),
    "values marked as a folder": marked(zipped(RIGHT), "a/data/0"),
    "a version marked as a folder": marked(zipped(RIGHT), "a/version"),
    "a folder of values": zipped({"a": tensor(4, (2, 2), (2, 1), key="0/")}, {"data/0/": FLOATS}),
    "no zip": b"PK\3\4" + bytes(2000),
}
OLDER = {
    "a count of 10 GB": older({"a": tensor(MANY, (4,), (1,))}, [(MANY, bytes(16))]),
    "another count": older(RIGHT, [(MANY, bytes(16))]),
    "values that are not there": older(RIGHT, []),
    "values that nobody needs": older(RIGHT, [(4, bytes(16))] * 2),
    "something behind them": older(RIGHT) + b"behind",
    "another magic number": older(RIGHT)[20:],
    "a pickle": pickle.dumps({"a": [1.0, 2.0]}, 2),
}
WHOLE = {
    "zip": zipped(RIGHT),
    "older": older(RIGHT),
    "safetensors": safetensors({"a": entry([2, 2], 0, 16)}, FLOATS),
}
"""A file of each kind, of the same tensor."""
FILES = {
    **{f"safetensors, {name}": data for name, data in SAFETENSORS.items()},
    **{f"zip, {name}": zipped(value) for name, value in {**TENSOR, **CALLS, **PICKLES}.items()},
    **{f"zip, {name}": data for name, data in ZIPS.items()},
    **{f"older, {name}": older(value) for name, value in {**TENSOR, **CALLS, **PICKLES}.items()},
    **{f"older, {name}": data for name, data in OLDER.items()},
    **{f"{kind}, cut at {at}": data[: len(data) * at // 8] for kind, data in WHOLE.items() for at in range(8)},
}
