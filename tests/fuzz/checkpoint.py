"""Fuzz target: the files of a training's state."""

from __future__ import annotations

import dataclasses
import io
import random
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.training import Checkpoints, Listener, Trainer
from fastcifar.training.state_file import read_state
from tests.small import MLP

TINY = dataclasses.replace(MLP, epochs=1, network=MLPConfig(hidden=(2,)))


@cache
def seeds() -> dict[str, bytes]:
    """Return a state before the first step and one at the end of the training."""
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, "never")

        def keep(*_: object) -> None:
            path = checkpoints.save()
            found[path.name] = path.read_bytes()

        Trainer(TINY, make_synthetic(32, 4), "cpu").run(listeners=[checkpoints, Listener(on_start=keep, on_epoch=keep)])
    return found


def check(data: bytes, folder: Path) -> bool:
    """Return True where `data` is read as one of the seeds, bit for bit, False where it is refused in a line. Raises
    AssertionError for anything else."""
    path = folder / "step-00000001.pt"
    path.write_bytes(data)
    try:
        state = read_state(path)
    except UserError as error:
        assert str(error).isprintable()
        return False
    assert any(_same(state, whole) for whole in _whole()), "another state than was written is accepted"
    return True


def mutate(data: bytes, random: random.Random) -> bytes:
    """Return the archive packed anew, with a part left out or doubled, or compressed, or with bytes of its directory
    changed. Parts changed under right checksums would be another state, not a damaged one."""
    how = random.choice(["left out", "doubled", "compressed", "directory"])
    if how == "directory":
        changed, start = bytearray(data), data.index(b"PK\x01\x02")
        for _ in range(random.randint(1, 3)):
            changed[random.randrange(start, len(data))] = random.choice([0, 1, 127, 128, 255])
        return bytes(changed)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [(info.filename, archive.read(info)) for info in archive.infolist()]
    name, part = random.choice(parts)
    if how == "left out":
        parts.remove((name, part))
    elif how == "doubled":
        parts.append((random.choice([f"{name}-2", "archive/constants.pkl", "archive/byteorder"]), part))
    packed = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two parts of one name
        for name, part in parts:
            archive.writestr(name, part)
    return packed.getvalue()


@cache
def _whole() -> list[Any]:
    return [torch.load(io.BytesIO(data), weights_only=True) for data in seeds().values()]


def _same(one: Any, other: Any) -> bool:
    """Return True for values of the same types, equal to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
