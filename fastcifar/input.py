"""Files from anywhere that are read: weights and records of runs, which may be damaged or hostile. Standard library
only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fastcifar.errors import UserError
from fastcifar.output import run_files, user_path

MOST_HEADER = 4 << 20
"""Bytes that the header of a .safetensors file may have; its first 8 bytes say how many."""
_MOST_RECORD = 64 << 20
"""Bytes that a record may have: those of some 200,000 epochs."""
_CHUNK = 1 << 20


@contextlib.contextmanager
def opened(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a file that exists to be read, and close it. Raises UserError, which calls it `what`, for devices, pipes and
    the like, which may have no end, and where it cannot be read."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # a pipe would wait
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{what} {path} is no regular file; allowed: a file, not a folder, device or pipe")
            yield file
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or error}") from None


def sha256_of(path: Path, what: str) -> str:
    """Return the sha256 of a file, read in pieces. Raises UserError as `opened` does."""
    digest = hashlib.sha256()
    with opened(path, what) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, such as the record of a run.

    Raises UserError for anything else: a key that is there twice, NaN, a number beyond those of float, more than
    64 MiB.
    """
    try:
        with opened(path, "the record") as file:
            text = file.read(_MOST_RECORD + 1)
        if len(text) > _MOST_RECORD:
            raise ValueError(f"it has more than {_MOST_RECORD:,} bytes")
        values = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
        )
        if not isinstance(values, dict):
            raise ValueError(f"it is of type {type(values).__name__}")
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged: {reason}; allowed: an object of JSON, the record of a run") from None
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number that a record may hold")
    return value


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of weights of a saved run (see `run_files`), or that file itself. Raises UserError if there is
    none, and for a file of another kind than those that `read_weights` reads, as its first bytes tell."""
    path = user_path(path, "the source of weights")
    allowed = "the folder of a saved run, or a file of weights: .safetensors, or .pt, .pth or .ckpt of torch.save"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:  # a loop of links, a name too long
        raise UserError(f"cannot read the weights in {path}: {error.strerror or error}; allowed: {allowed}") from None
    if mode and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a device, a pipe or a socket; allowed: {allowed}")
    file = path if stat.S_ISREG(mode) and path.suffix != ".json" else run_files(path)[1]
    if not file.is_file():
        found = f"holds no run: {file.name} is missing" if mode else "does not exist"
        raise UserError(f"{path} {found}; allowed: {allowed}")
    with opened(file, "the weights in") as weights:
        start = weights.read(8)
    zipped, pickled = start[:4] == b"PK\3\4", start[:1] == b"\x80"
    if len(start) < 8 or not (int.from_bytes(start, "little") <= MOST_HEADER or zipped or pickled):
        what = "is empty" if not start else "holds no weights that can be read"
        raise UserError(f"{file} {what}; allowed: {allowed}")
    return file
