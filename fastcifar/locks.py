"""Lock files, by which processes keep out of one another's way. Standard library only."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastcifar.errors import UserError

_LOOK_SECONDS = 0.1
"""A process that waits for a lock looks so often whether it is free."""
WAIT_SECONDS = 60
"""How long to wait for another process that writes a small file."""
_files: weakref.WeakSet[IO[str]] = weakref.WeakSet()
"""The lock files that this process has open. A child that is forked closes them, or with them it would hold the lock of
a parent that was killed."""


@contextlib.contextmanager
def claimed(path: Path, wait: float = 0.0) -> Iterator[bool]:
    """Hold the lock file `path` while the block runs, and give whether this process holds it: no two do at once.

    wait: seconds to wait for a process that holds it.

    The system gives it up with the process, however that ends: a file that is left behind is no lock. Where there are
    no such locks (Windows, some network file systems), everybody holds it: a file that is written whole twice is the
    same.
    """
    until = time.monotonic() + wait
    while True:
        with _claimed(path) as is_ours:
            if is_ours or time.monotonic() >= until:
                yield is_ours
                return
        time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Do as `claimed`, without waiting."""
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
        _files.add(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        try:
            is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:  # whoever held it was done between our opening and locking it
            is_there = False
        try:
            yield is_there
        finally:
            if is_there:
                with contextlib.suppress(OSError):
                    path.unlink()


def _close() -> None:
    for file in _files:
        file.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close)
