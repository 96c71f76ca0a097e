"""The file of a training's state: written by `torch.save`, so that any program reads it, and read with distrust.

`torch.load(weights_only=True)` runs no code, but it notices no flipped bits, and leaves memory uninitialized where a
damaged directory hides values. So the archive's parts are read by zipfile, which checks their checksums, and put
together here: the pickle may say what `torch.save` says of plain values and tensors, and nothing else.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from fastcifar.errors import UserError
from fastcifar.host import ProcessSetting
from fastcifar.output import write_whole
from fastcifar.training.torch_file import STORAGES

VERSION = 1
"""The version of the format: a `TrainingState.state_dict()` and its "version"."""
_PARTS = {"of": dict, "seed": int, "init": dict, "step": int, "flat": dict, "optimizer": dict, "history": list}
"""What every state holds, and more."""
_SHOWN = 200
"""Characters that a message shows of another library's."""
_STORAGES = {**STORAGES, "UntypedStorage": torch.uint8}
_INSTRUCTIONS = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT),
    *(pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.EMPTY_TUPLE),
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT),
    *(pickle.LONG_BINPUT, pickle.GLOBAL, pickle.REDUCE, pickle.BINPERSID),
)
"""What `torch.save` writes for plain values and tensors."""

_checksums = ProcessSetting(torch.serialization.get_crc32_options, torch.serialization.set_crc32_options)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state as a file that is there whole or not at all. Raises UserError where that cannot be done, also for
    a state that could not be read again."""
    with _checksums.set_to(True):
        write = torch_writer(_plain({"version": VERSION, **state}))
    write_whole(path, write)


def torch_writer(value: object) -> Callable[[Path], object]:
    """Return what writes `value` to a path as `torch.save` does. It is made in memory now: of a full disk torch itself
    says only that writing failed."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return lambda path: path.write_bytes(buffer.getbuffer())


def read_state(path: Path) -> dict[str, Any]:
    """Return the state in a file. Nothing in it is run, and no more memory is taken than the file is long. Raises
    UserError, which names the file and the reason, for one that is not as it was written."""
    try:
        length = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            state = _Reader(archive, length).load()
        if not isinstance(state, dict) or state.get("version") != VERSION:
            version = state.get("version") if isinstance(state, dict) else None
            raise ValueError(f"its version is {version!r:.{_SHOWN}}; allowed: {VERSION}")
        if wrong := [name for name, kind in _PARTS.items() if type(state.get(name)) is not kind]:
            raise ValueError(f"it is no training's state: {wrong[0]} is missing or wrong")
        for value in _values(state):
            length -= value.nbytes if isinstance(value, torch.Tensor) else 1
            if length < 0:
                raise ValueError("it claims to hold more than there is")
    except Exception as error:  # a damaged file makes zipfile, pickle and torch raise many kinds
        reason = "".join(filter(str.isprintable, " ".join(str(error).split())))[:_SHOWN]
        reason = reason if type(error) is ValueError else f"{type(error).__name__}: {reason}"
        raise UserError(f"{path} is damaged: {reason}") from None
    return state


class _Reader(pickle._Unpickler):  # Python's: the one in C makes room for as many values as a file claims
    """Reads the pickle in `archive`, a file of `length` bytes, and the tensors' values beside it."""

    dispatch: ClassVar[dict[int, Any]] = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _INSTRUCTIONS}

    def __init__(self, archive: zipfile.ZipFile, length: int) -> None:
        parts = archive.infolist()
        self._parts = {each.filename.partition("/")[2]: each for each in parts}
        self._archive, self._values = archive, {}
        if len(self._parts) < len(parts):
            raise ValueError("it holds two parts of one name")
        if any(each.compress_type or each.file_size != each.compress_size for each in parts):
            raise ValueError("it is compressed")
        if sum(each.file_size for each in parts) > length:
            raise ValueError("it claims to hold more than there is")
        if self._part("byteorder") != sys.byteorder.encode():
            raise ValueError("it is of a machine with another order of bytes")
        super().__init__(io.BytesIO(self._part("data.pkl")))

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what stands for a name of `torch.save`. Raises ValueError for any other."""
        known: dict[str, Callable[..., Any]] = {
            "torch._utils _rebuild_tensor_v2": _tensor,
            "torch._utils _rebuild_tensor_v3": _typed_tensor,
            "collections OrderedDict": dict,
        }
        dtype = _STORAGES.get(name, getattr(torch, name, None)) if module in ("torch", "torch.storage") else None
        found = dtype if isinstance(dtype, torch.dtype) else known.get(f"{module} {name}")
        if found is None:
            raise ValueError(f"it holds more than values: {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """Return the values that a tensor lies in."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or type(key) is not str or not isinstance(dtype, torch.dtype):
            raise ValueError("it names values as torch.save does not")
        if key not in self._values:
            self._values[key] = self._part(f"data/{key}")
        values = torch.frombuffer(self._values[key], dtype=dtype) if self._values[key] else torch.empty(0, dtype=dtype)
        if len(values) != count:
            raise ValueError(f"it claims {count} values, of which {len(values)} are there")
        return values

    def _part(self, name: str) -> bytearray:
        if name not in self._parts:
            raise ValueError(f"{name} is missing")
        return bytearray(self._archive.read(self._parts[name]))


def _tensor(values: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> torch.Tensor:
    """Do as `torch._utils._rebuild_tensor_v2`. torch checks that all lies within the values."""
    return values.as_strided(shape, strides, offset)


def _typed_tensor(
    values: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    """Do as `torch._utils._rebuild_tensor_v3`, of types that have no storage of their own."""
    return values.view(dtype).as_strided(shape, strides, offset)


def _values(value: Any) -> Iterator[Any]:
    """Give all values inside `value`. Raises ValueError for one that no state has."""
    if type(value) in (dict, list, tuple):
        yield value
        for inner in [*value, *value.values()] if type(value) is dict else value:
            yield from _values(inner)
    elif type(value) in (bool, int, float, str, type(None), torch.Tensor):
        yield value
    else:
        raise ValueError(f"it holds a {type(value).__name__}")


def _plain(value: Any, where: str = "") -> Any:
    """Return `value` as `read_state` returns it. Raises UserError where that is impossible."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized:
        return value.detach().as_subclass(torch.Tensor)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    for kind in (tuple, list):
        if isinstance(value, kind):
            return kind(_plain(inner, f"{where}[{place}]") for place, inner in enumerate(value))
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    what = f"{where.lstrip('.')} of the training's state is of type {type(value).__name__}"
    raise UserError(f"{what}; allowed: tensors, numbers, text, lists and dictionaries")
