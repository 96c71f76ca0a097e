"""The files of a training's state: what is written is read as it was, and nothing else is read."""

import collections
import os
import warnings
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar.errors import Notice, UserError
from fastcifar.training import Checkpoints
from fastcifar.training.state_file import read_state, write_state

STATE = {"of": {}, "seed": 0, "init": {}, "step": 1, "flat": {}, "optimizer": {}, "history": []}


def test_all_that_a_state_may_hold_is_read_as_it_was(tmp_path):
    dtypes = (torch.float64, torch.bfloat16, torch.int16, torch.bool, torch.complex64, torch.uint16, torch.float8_e5m2)
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    tensors |= {
        "strided": torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last)[:, 1:5],
        "none": torch.empty(0),
    }
    values = {"a": (1, 2.5, None, True, "\u00e9\n"), "b": [-1, 2**40, 10**30, {0: []}], "size": torch.Size([2, 3])}
    values |= {"ordered": collections.OrderedDict(c=np.float64(0.1)), "parameter": nn.Parameter(torch.ones(2))}
    write_state(tmp_path / "state.pt", {**STATE, "flat": tensors, "optimizer": values})
    read = read_state(tmp_path / "state.pt")
    for name, tensor in tensors.items():
        assert read["flat"][name].dtype == tensor.dtype and torch.equal(
            *(each.contiguous().view(torch.uint8) for each in (read["flat"][name], tensor))
        )
    found = read["optimizer"]
    assert torch.equal(found.pop("parameter"), torch.ones(2))
    assert found == {**{k: values[k] for k in "ab"}, "size": (2, 3), "ordered": {"c": 0.1}}


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, torch.eye(3).to_sparse(), len], ids=lambda value: type(value).__name__
)
def test_what_could_not_be_read_again_is_refused_when_it_is_written(tmp_path, value):
    with pytest.raises(
        UserError, match=rf"^optimizer\.own\[1\] of the training's state is of type {type(value).__name__}"
    ):
        write_state(tmp_path / "state.pt", {"optimizer": {"own": [0, value]}})
    assert os.listdir(tmp_path) == []


def test_checksums_are_written_whatever_the_program_has_set(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        write_state(tmp_path / "state.pt", STATE)
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_state(tmp_path / "state.pt") == {"version": 1, **STATE}


class Command:
    """What runs code where it is unpickled freely."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def rewritten(**changes):
    return lambda path: torch.save({**torch.load(path, weights_only=True), **changes}, path)


def byte_changed(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def packed(path, compression=zipfile.ZIP_DEFLATED, times=1):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two parts of one name
        for name, part in [*parts.items()] * times:
            archive.writestr(name, part)


def doubled(levels):
    value = [0]
    for _ in range(levels):
        value = [value, value]
    return value


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "BadZipFile"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "BadZipFile"),
    "a byte": (byte_changed, "Bad CRC-32"),
    "text": (lambda path: path.write_text("a letter"), "BadZipFile"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "IsADirectoryError"),
    "old pickle": (lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), "BadZipFile"),
    "compressed": (packed, "it is compressed"),
    "all twice": (lambda path: packed(path, zipfile.ZIP_STORED, times=2), "two parts of one name"),
    "a command": (rewritten(random=Command()), "more than values: posix.mkdir"),
    "a tensor alone": (lambda path: torch.save(torch.zeros(3), path), "its version is None"),
    "version 2": (rewritten(version=2), "its version is 2; allowed: 1"),
    "no step": (rewritten(step=None), "step is missing or wrong"),
    "a huge tensor": (rewritten(more=torch.zeros(1).expand(10**12)), "claims to hold more than there is"),
    "a huge list": (rewritten(more=doubled(60)), "claims to hold more than there is"),
    "a sparse tensor": (
        rewritten(more=torch.eye(3).to_sparse()),
        "more than values: torch._utils._rebuild_sp",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_state_is_passed_over_and_told(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, values = tmp_path / "states", torch.randn(1000)
    older, newest = (folder / f"step-000000{step}.pt" for step in (16, 17))
    for step, path in ((16, older), (17, newest)):
        write_state(path, {**STATE, "step": step, "flat": {"weights": values, "ema": values[:10].clone()}})
    damaging, reason = DAMAGES[damage]
    damaging(newest)
    with pytest.warns(Notice) as told:
        assert Checkpoints(folder).newest()["step"] == 16
    (line,) = [str(each.message) for each in told]
    assert f"{newest} is damaged: " in line and reason in line and "\n" not in line
    assert line.endswith(f"the training goes on from {older.name}")
    older.write_bytes(b"")
    with pytest.raises(UserError, match=r"no state of a training in .* is whole") as said:
        Checkpoints(folder).newest()
    assert "\n" not in str(said.value) and reason in str(said.value) and "BadZipFile" in str(said.value)
    assert not (tmp_path / "unpickled").exists()


def test_values_that_the_archives_directory_hides_are_read_all_the_same(tmp_path):
    """torch.load leaves memory uninitialized where a flipped bit of the directory makes a folder of a part."""
    write_state(tmp_path / "state.pt", {**STATE, "flat": {"weights": torch.arange(1000), "ema": torch.ones(1000)}})
    data = bytearray((tmp_path / "state.pt").read_bytes())
    data[data.index(b"archive/data/1", data.index(b"PK\1\2")) - 8] |= 0x10  # external attributes: a folder
    (tmp_path / "state.pt").write_bytes(data)
    assert torch.equal(read_state(tmp_path / "state.pt")["flat"]["ema"], torch.ones(1000))
