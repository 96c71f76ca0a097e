"""Arrays that took long to read, kept in the user's cache as one .npz, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from fastcifar.data.anew import READ_ANEW
from fastcifar.data.archives import npz_header, npz_keys, read_npz
from fastcifar.data.download import user_cache
from fastcifar.errors import Notice, UserError
from fastcifar.output import write_whole

_FOLDER = "converted"
_VERSION = "1"
"""Another one where `make` anywhere makes something else of the same files."""
_SUM = "key"
"""The name of the array that says what the others were made of."""


def kept_name(path: Path, *how: object) -> str:
    """Return the name that arrays made of `path` are kept by; `how` they were made."""
    words = "\n".join(map(str, (path.resolve(), *how)))
    return f"{path.name[:40]}-{hashlib.sha256(words.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def kept(name: str, key: Iterable[str], make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Return what `make` returns, arrays of numbers: those that are kept by `name`, where they were made of the same
    `key`; else they are made, and kept if that can be.

    key: what the arrays depend on, such as the names, sizes and times of files.
    """
    digest = hashlib.sha256("\n".join([_VERSION, *key]).encode("utf-8", "surrogateescape")).digest()
    try:
        path = user_cache() / _FOLDER / f"{name}.npz"
    except ModuleNotFoundError:  # platformdirs: nothing is kept
        return make()
    with contextlib.suppress(UserError, OSError):  # a damaged one is made again
        if not READ_ANEW.get() and _SUM in npz_keys(path) and read_npz(path, _SUM, "u1", (32,), "").tobytes() == digest:
            headers = {part: npz_header(path, part) for part in npz_keys(path) - {_SUM}}
            return {part: read_npz(path, part, dtype.str[1:], shape, "") for part, (shape, dtype) in headers.items()}
    made = make()
    arrays = {**made, _SUM: np.frombuffer(digest, np.uint8)}
    try:
        write_whole(path, lambda partial: np.savez(partial, **arrays))  # pyright: ignore[reportArgumentType]
    except UserError as error:
        warnings.warn(f"what was read is not kept for the next time: {error}", Notice, stacklevel=2)
    return made
