"""Reader of torch.save's files, of the zip format and the older one, that believes nothing in them.

`torch.load(weights_only=True)` runs no code of a file. But it allocates what a file claims, inflates compressed
entries, does not notice flipped bits, and leaves memory uninitialized where values are missing. So what a file says is
worked out first, by `_Description`: it reads the pickle as a list of instructions, of which it knows those that a
state_dict needs, and makes no tensor.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

_MOST_BYTES, _MOST_INSTRUCTIONS = 4 << 20, 500_000
"""Most bytes and instructions of a pickle, which may take some 100 bytes of memory for each instruction. A tensor takes
about 30, so that these are 15,000 tensors."""
_MOST_ENTRIES = 50_000
_MOST_SIDES = 64
_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
"""The types of values by the names of their storages in files of `torch.save`."""
_STORAGES = {f"torch {name}": dtype for name, dtype in STORAGES.items()} | {"torch.storage UntypedStorage": torch.uint8}
_DTYPES = {f"torch {name}": kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
_TYPED = ("torch float8", "torch uint16", "torch uint32", "torch uint64")
"""The beginnings of the names of types that have no storages of their own, and that torch converts."""
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KINDS = {
    "qtensor": "quantized",
    "sparse": "sparse",
    "nested": "nested",
    "QInt": "quantized",
    "QUInt": "quantized",
    "_meta_": "meta",
    "_from_type": "subclassed",
}


@dataclass(frozen=True)
class Name:
    """A name that a pickle takes from a module, which is not looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Values that a file claims to hold."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Described:
    """A tensor as a file describes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def load(data: bytes, choose: Callable[[object], list[str]]) -> dict[str, torch.Tensor]:
    """Return the state_dict in `data`, a whole file of torch.save, on the CPU.

    choose: gets what the file holds, with a `Described` in place of each tensor, and returns the keys that lead to a
        dictionary of tensors.

    Raises ValueError with the reason, and other errors for damaged files.
    """
    described = _of_zip(data) if data[:2] == b"PK" else _of_older(data)
    keys = choose(described)
    found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True, mmap=False)
    for key in keys:
        described, found = _item(described, key), dict.__getitem__(found, key)
    tensors = {name: tensor.detach() for name, tensor in dict.items(found)}
    if described != {name: Described(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}:
        raise ValueError("torch reads other tensors than it describes")
    return tensors


def _item(described: object, key: str) -> object:
    assert isinstance(described, dict)
    return described[key]


def _of_zip(data: bytes) -> object:
    """Return what a file of the zip format describes. Raises ValueError where zip readers could differ about it: the
    directory must end the file, as torch.save writes it, and each entry must be there once, and not compressed."""
    end, locator = data[-22:], data[-42:-22]
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise ValueError("it is truncated, or has something behind its end")
    entries, directory = struct.unpack("<HI", end[10:16])
    if locator[:4] == b"PK\6\7":
        if struct.unpack("<Q", locator[8:16])[0] != len(data) - 98 or data[-98:-94] != b"PK\6\6":
            raise ValueError("its directory is not where it says")
        entries, directory = struct.unpack("<QQ", data[-66:-50])
    if entries > _MOST_ENTRIES or directory > _MOST_BYTES:
        raise ValueError(f"it claims {entries:,} entries, more than {_MOST_ENTRIES:,}, or names too long")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        for info in infos.values():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
                raise ValueError(f"its entry {info.filename} is compressed or encrypted, as torch.save writes none")
            if info.external_attr & 0x10 or info.filename.endswith("/"):  # torch reads no bytes of it, and says nothing
                raise ValueError(f"its entry {info.filename} is a folder, as torch.save writes none")
        names = {name.lower() for name in infos}
        if not len(names) == len(archive.infolist()) == entries or any(
            info.filename != info.orig_filename for info in infos.values()
        ):
            raise ValueError("its directory is damaged, or has several entries of one name")
        places = sorted((info.header_offset, info.file_size) for info in infos.values())
        ends = [start for start, _ in places[1:]] + [archive.start_dir]
        if places[0][0] != 0 or any(start + size > end for (start, size), end in zip(places, ends, strict=True)):
            raise ValueError("its entries lie over each other, or behind something else")
        if damaged := archive.testzip():
            if not any(info.CRC for info in infos.values()):
                raise ValueError("it was written without checksums (torch.serialization.set_crc32_options)")
            raise ValueError(f"its entry {damaged} is damaged: the checksum is not that of the values")
        folder = next(iter(infos)).partition("/")[0]
        if f"{folder}/constants.pkl" in infos:
            raise ValueError("it is a program of TorchScript")
        pickle = infos.get(f"{folder}/data.pkl")
        if pickle is None:
            raise ValueError("it is a zip archive that torch.save did not write")
        if pickle.file_size > _MOST_BYTES:
            raise ValueError(f"its pickle has {pickle.file_size:,} bytes, more than {_MOST_BYTES:,}")
        description = _Description(io.BytesIO(archive.read(pickle)))
    described = description.read()
    for storage in description.storages.values():
        entry = infos.get(f"{folder}/data/{storage.key}")
        if entry is None or entry.file_size != storage.bytes:
            there = "none" if entry is None else f"{entry.file_size:,}"
            raise ValueError(f"it claims {storage.bytes:,} bytes of values, of which {there} are there")
    return described


def _of_older(data: bytes) -> object:
    """Return what a file of the older format describes: five pickles, then the values."""
    file = io.BytesIO(data)
    description = _Description(file)
    if description.read() != _MAGIC or description.read() != 1001:
        raise ValueError("it is a pickle that torch.save did not write")
    description.read()  # the machine's byte order and sizes of integers
    described = description.read()
    keys = description.read()
    if type(keys) is not list or sorted(map(str, keys)) != sorted(description.storages):
        raise ValueError("it does not list the values that it needs")
    for key in keys:
        storage = description.storages[str(key)]
        count = int.from_bytes(file.read(8), "little")
        left = len(data) - file.tell()
        if count != storage.count or storage.bytes > left:
            raise ValueError(f"it claims {count:,} values of {storage.count:,}, and {left:,} bytes are left")
        file.seek(storage.bytes, io.SEEK_CUR)
    if file.read(1):
        raise ValueError("it has something behind its end")
    return described


@dataclass
class _Description:
    """The pickles in `file`, read one after the other as lists of instructions that call nothing.

    The instructions are those of protocol 2, which torch.save writes, and mean what they mean to torch's own reader.
    """

    file: BinaryIO
    storages: dict[str, Storage] = field(default_factory=dict)
    """The values that tensors lie in, by their keys."""
    instructions: int = 0

    def read(self) -> object:
        """Return what the next pickle describes. Raises ValueError for an instruction or a name that no state_dict
        needs."""
        stack: list[Any] = []
        marked: list[list[Any]] = []
        memo: dict[int, Any] = {}
        begin = self.file.tell()
        instructions: Any = pickletools.genops(self.file)
        for instruction, value, position in instructions:
            self.instructions += 1
            if self.instructions > _MOST_INSTRUCTIONS or position - begin > _MOST_BYTES:
                raise ValueError(f"its pickle is longer than {_MOST_INSTRUCTIONS:,} instructions")
            name = instruction.name
            if name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            elif name in _VALUES:
                stack.append(value)
            elif name == "MARK":
                marked.append(stack)
                stack = []
            elif name == "TUPLE":
                items, stack = stack, marked.pop()
                stack.append(tuple(items))
            elif name in _TAKEN:
                items = [stack.pop() for _ in range(_TAKEN[name])]
                stack.append(tuple(reversed(items)))
            elif name in ("APPEND", "SETITEM"):
                items = [stack.pop() for _ in range(1 + (name == "SETITEM"))]
                _fill(stack[-1], items[::-1], keyed=name == "SETITEM")
            elif name in ("APPENDS", "SETITEMS"):
                items, stack = stack, marked.pop()
                _fill(stack[-1], items, keyed=name == "SETITEMS")
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[value] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[value])
            elif name == "GLOBAL":
                stack.append(_known(value))
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name == "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_made(called, arguments))
            elif name == "BUILD":
                if type(stack.pop()) is not dict or type(stack[-1]) is not dict:
                    raise ValueError("it sets attributes of what is no OrderedDict")
            elif name == "STOP":
                if len(stack) != 1 or marked:
                    raise ValueError("its pickle is damaged")
                return stack[0]
            elif (name, value) != ("PROTO", 2):
                raise ValueError(
                    f"its pickle has the instruction {name} {value}, which torch.save does not write by default"
                )
        raise ValueError("its pickle has no end")

    def _storage(self, value: Any) -> Storage:
        """Return the storage that `value` names: "storage", type, key, device, number of values and, in the older
        format, None."""
        kind, name, key, _, count, *view = value
        if (
            kind != "storage"
            or type(name) is not Name
            or type(count) is not int
            or count < 0
            or view not in ([], [None])
        ):
            raise ValueError("it names values as torch.save does not")
        if type(key) is not str or name.name not in _STORAGES or (view and name.name.startswith("torch.storage")):
            raise ValueError(f"it holds values of type {name.name}")
        storage = Storage(key, _STORAGES[name.name], count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("it takes the same values for two types")
        return storage


def _fill(container: Any, items: list[Any], keyed: bool) -> None:
    """Add `items` to a list or, as keys and values, to a dictionary."""
    if type(container) is list and not keyed:
        container.extend(items)
        return
    if type(container) is not dict or not keyed:
        raise ValueError("it adds to what is no list or dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int, float, bool, type(None)):  # the hash of a tuple of tuples may take forever
            raise ValueError("it has a dictionary whose keys are no names or numbers")
        container[key] = value


def _known(name: str) -> Name:
    """Return a name that a state_dict may need."""
    if name in _MAKERS or name in _STORAGES or name in _DTYPES:
        return Name(name)
    said = name.replace(" ", ".")
    for part, kind in _KINDS.items():
        if part in name and name.startswith("torch"):
            raise ValueError(f"it holds {kind} tensors ({said})")
    raise ValueError(
        f"it holds objects of Python, not weights alone ({said}), as of torch.save(model) or beside the weights"
    )


def _made(called: Any, arguments: Any) -> object:
    """Return what `called` makes of `arguments`."""
    if type(called) is not Name or called.name not in _MAKERS or type(arguments) is not tuple:
        raise ValueError("it calls what cannot be called")
    return _MAKERS[called.name](*arguments)


def _dictionary(items: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    if type(items) not in (tuple, list):
        raise ValueError("it makes a dictionary of what is no list")
    for pair in items:
        _fill(made, list(pair), keyed=True)
    return made


def _counter(counts: Any) -> dict[Any, Any]:
    if type(counts) is not dict:
        raise ValueError("it makes a Counter of what is no dictionary")
    return dict(counts)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any = False, hooks: Any = None, *rest: Any
) -> Described:
    """Return the tensor that torch._utils._rebuild_tensor_v2 would make, if its values are there once each."""
    if (
        type(storage) is not Storage
        or type(shape) is not tuple
        or type(strides) is not tuple
        or len(shape) > _MOST_SIDES
    ):
        raise ValueError("it makes a tensor of what is none")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in (offset, *shape, *strides)):
        raise ValueError("it makes a tensor whose sides and strides are no whole numbers from 0 on")
    if hooks or any(rest):
        raise ValueError("it holds a tensor with hooks or other attributes")
    reach = sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1
    count = math.prod(shape)
    if count and not count <= reach <= storage.count - offset:
        raise ValueError(f"it claims a tensor {list(shape)} with strides {list(strides)} of {storage.count:,} values")
    return Described(storage.dtype, shape)


def _typed(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> object:
    """Return the tensor that torch._utils._rebuild_tensor_v3 would make of bytes, in a type without storages of its
    own, such as float8."""
    if type(storage) is not Storage or storage.dtype != torch.uint8 or type(dtype) is not Name:
        raise ValueError("it makes a tensor of what is none")
    if not dtype.name.startswith(_TYPED):
        raise ValueError(f"it holds values of type {dtype.name}")
    kind = _DTYPES[dtype.name]
    return _tensor(
        Storage(storage.key, kind, storage.count // kind.itemsize), offset, shape, strides, grad, hooks, *rest
    )


def _plain(kind: type, *allowed: type) -> Callable[..., object]:
    """Return what makes a value that lies beside weights, which nobody looks at, of `allowed` values."""

    def make(*arguments: Any) -> object:
        items = arguments[0] if len(arguments) == 1 and type(arguments[0]) in (list, tuple) else arguments
        if any(type(item) not in allowed for item in items):
            raise ValueError(f"it makes a {kind.__name__} of other values")
        return Name(kind.__name__)

    return make


def _parameter(tensor: Any, grad: Any, hooks: Any) -> Described:
    if type(tensor) is not Described or hooks:
        raise ValueError("it makes a parameter of what is no tensor")
    return tensor


_MAKERS: dict[str, Callable[..., object]] = {
    "collections OrderedDict": _dictionary,
    "collections Counter": _counter,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _typed,
    "torch._utils _rebuild_parameter": _parameter,
    "torch device": _plain(torch.device, str, int),
    "torch Size": _plain(torch.Size, int),
    "__builtin__ set": _plain(set, str, int, float, bool, type(None)),
    "__builtin__ complex": _plain(complex, float),
    "_codecs encode": lambda text, encoding: _plain(bytes, str)(text, {"latin1": ""}[encoding]),  # others may be slow
}
