"""Downloads in the user's cache, by one process at a time, whole or not at all: archives unpacked into a folder, with
checksums to read them by, and files that are kept as they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastcifar.data.download import DownloadError
from fastcifar.data.fetch import LIMITS, Home, Limits, Pinned, fetch, part_of, remove_part
from fastcifar.errors import Notice, UserError
from fastcifar.locks import claimed

SUMS = "SHA256SUMS"
"""The file of the checksums of a folder's files, as sha256sum of coreutils writes and reads it."""
_MADE = "# made from the official {archive}; sha256 of the images and labels: {sha256}\n"
"""Its first line, a comment to sha256sum."""
_LOCK = ".download.lock"
_LOOK_SECONDS = 0.1


def install(
    homes: Sequence[Home],
    cache: Path,
    unpack: Callable[[Path, Any], Iterable[tuple[str, bytes]]],
    fingerprint: Callable[[Path, Any], str],
    limits: Limits = LIMITS,
) -> None:
    """Download the archive of one of `homes` and unpack it to its folder in `cache`, unless another process has done so
    meanwhile.

    unpack: yields the name and the content of each file in an archive, given its path and the home's `archive`.
    fingerprint: returns the sha256 of what an unpacked folder holds, given its path and the home's `archive`.

    Raises DownloadError where that fails; what is there of the archive stays for the next time.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        name = min(home.archive.folder for home in homes)  # sets are downloaded beside each other
        with _alone(cache, cache / f".{name}{_LOCK}", homes[0].url, limits):
            if any((cache / home.archive.folder).is_dir() for home in homes):
                return
            part, archive = fetch(homes, cache, limits)
            scratch = cache / f"{archive.folder}.part"
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
            try:
                _unpack(part, archive, scratch, unpack, fingerprint)
                with contextlib.suppress(FileExistsError):  # where there are no locks, another process was faster
                    scratch.rename(cache / archive.folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            for home in homes:
                remove_part(part_of(cache, home.archive))
    except OSError as error:
        raise DownloadError(homes[0].url, f"cannot write to {cache}: {error.strerror or error}") from error


def install_files(homes: Sequence[Home], folder: Path, limits: Limits = LIMITS) -> None:
    """Download to `folder`, in the cache, each file of `homes` that it lacks, unless another process has done so
    meanwhile. A file is there whole or not at all.

    Raises DownloadError where that fails; what is there of a file stays for the next time.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, folder / _LOCK, homes[0].url, limits):
            for archive in dict.fromkeys(home.archive for home in homes):
                if not (folder / archive.filename).is_file():
                    part, _ = fetch([home for home in homes if home.archive == archive], folder, limits)
                    with part.open("rb+") as file:
                        os.fsync(file.fileno())
                    part.replace(folder / archive.filename)
                    remove_part(part)
    except OSError as error:
        raise DownloadError(homes[0].url, f"cannot write to {folder}: {error.strerror or error}") from error


def _unpack(
    part: Path,
    archive: Pinned,
    scratch: Path,
    unpack: Callable[[Path, Any], Iterable[tuple[str, bytes]]],
    fingerprint: Callable[[Path, Any], str],
) -> None:
    scratch.mkdir()
    sums = []
    for name, content in unpack(part, archive):
        _write(scratch / name, content)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
        part.touch()  # processes that wait see that something is done
    made = _MADE.format(archive=archive.filename, sha256=fingerprint(scratch, archive))
    _write(scratch / SUMS, "".join([made, *sums]).encode())


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _alone(cache: Path, lock: Path, url: str, limits: Limits) -> Iterator[None]:
    """Let one process at a time into the block; the others say once that they wait. Raises DownloadError where the one
    in there makes no progress, and where `cache` cannot be written to."""
    told, seen, since = False, None, time.monotonic()
    while True:
        with contextlib.ExitStack() as stack:
            try:
                is_ours = stack.enter_context(claimed(lock))
            except UserError as error:
                raise DownloadError(url, str(error)) from None
            if is_ours:
                yield
                return
        if not told:
            warnings.warn(f"waiting for another process, which downloads to {cache}", Notice, stacklevel=2)
            told = True
        state = _state(cache)
        if state != seen:
            seen, since = state, time.monotonic()
        elif time.monotonic() - since >= limits.idle:
            reason = f"another process, which holds {lock}, has made no progress for {limits.idle:g} s"
            raise DownloadError(url, reason)
        time.sleep(_LOOK_SECONDS)


def _state(cache: Path) -> list[tuple[str, int, int]]:
    """Return what changes in a folder while a process downloads to it."""
    found = []
    for path in sorted([*cache.glob("*.part"), *cache.glob("*/*.part")]):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.name, path.stat().st_size, path.stat().st_mtime_ns))
    return found


def is_verified(folder: Path, sha256: str | None) -> bool:
    """Return whether `folder` has checksums made from an official archive, by which what was read is right.

    sha256: the fingerprint of what was read. It spares another pass over the files, which are read again only to name
    the damaged one. None where it is of other labels than the checksums: the files are read again.

    Raises UserError where they say otherwise.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        return False
    pattern = re.escape(_MADE).replace(re.escape("{archive}"), ".*").replace(re.escape("{sha256}"), "(.*)")
    made = re.fullmatch(pattern, lines[0]) if lines else None
    if made is None:
        return False
    if made[1] == sha256:
        return True
    here = {path.name for path in folder.iterdir() if path.is_file()}
    for line in lines[1:]:
        sums = re.fullmatch(r"([0-9a-f]{64})  (.+)\n", line)
        if sums is None or sums[2] not in here:
            break
        expected, path = sums[1], folder / sums[2]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            again = f"the file as it was unpacked; remove {folder} to download it again"
            raise UserError(f"{path} is damaged: its sha256 is {found}, and {SUMS} says {expected}; allowed: {again}")
        here.remove(path.name)
    else:
        if sha256 is None and here == {SUMS}:
            return True
    raise UserError(f"{folder / SUMS} is damaged; allowed: as it was made; remove {folder} to download it again")
