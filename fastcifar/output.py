"""The folder of a run: may one be saved there, and where are its weights; paths as users write them. Standard library
only."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastcifar.errors import UserError

RECORD = "run.json"
"""The record of a run; a folder that holds one is a run's."""
WEIGHTS = "model.safetensors"
"""The weights of the evaluated network."""
TRACE = "trace.json"
"""A few training steps of a profiled run, for Chrome's trace viewer."""
_MOST = 100_000_000
"""Bytes that the header of a .safetensors file may have, as its library reads it; its first 8 bytes say how many."""
PARTIAL = ".partial-"
"""The beginning of a file's name until it is whole; a process that was killed may leave one behind."""


def user_path(path: str | os.PathLike[str], where: str) -> Path:
    """Return a path that a user gave, with the home folder for "~" and "~name".

    where: what the path is, for the error: "data_dir", "the weights".

    Raises UserError for what is no path, and where that user or the home folder is unknown.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise UserError(f"{where} is of type {type(path).__name__}; allowed: a path, as str or Path")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise UserError(f"{where} is {os.fspath(path)!r}; allowed: a path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise UserError(f"{where} is {path}, and there is no home folder {user}; allowed: a path without it") from None


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of weights in a run's folder, or that file itself. Raises UserError if there is none, and for a
    file of another kind."""
    path = user_path(path, "the source of weights")
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        found = f"holds no run: {WEIGHTS} is missing" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {found}; allowed: the folder of a saved run, or a .safetensors file")
    try:
        with open(file, "rb") as opened:
            start = opened.read(8)
    except OSError as error:
        raise UserError(f"cannot read the weights in {file}: {error.strerror or error}") from None
    if int.from_bytes(start, "little") > _MOST:
        load = "torch.load(PATH, weights_only=True)"
        raise UserError(
            f"{file} is no .safetensors file; allowed: one, as from a file of torch.save with a state_dict: "
            f"safetensors.torch.save_file({load}, 'weights.safetensors')"
        )
    return file


def check_out(folder: str | os.PathLike[str]) -> None:
    """Raise UserError unless a run can be saved to `folder`: absent or empty, in a place that can be written to."""
    folder = user_path(folder, "the output folder")
    try:
        _check(folder)
    except OSError as error:  # a name too long, a parent without permission to search it
        raise UserError(f"output folder {folder} cannot be made: {error.strerror or error}") from None


def _check(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()):
            held = "a run" if (folder / RECORD).exists() else "files"
            raise UserError(f"output folder {folder} already holds {held}; allowed: a new or an empty folder")
    elif folder.exists():
        raise UserError(f"output folder {folder} is a file; allowed: a new or an empty folder")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"output folder {folder} cannot be made: {parent} is not a folder that can be written to")


def umask() -> int:
    """Return the process's umask: the permissions that new files lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whenever the process ends. Raises UserError where it cannot
    be written."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=PARTIAL, delete=False) as file:
            partial = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~umask())
        os.replace(partial, path)
        partial = None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if partial:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` while the block runs, and give whether this process holds it: no two do at once.

    The system gives it up with the process, however that ends. Where there are no such locks (Windows, some network
    file systems), everybody holds it: a file that is written whole twice is the same.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115  (closed below, which gives the lock up)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True
        path.unlink(missing_ok=True)
