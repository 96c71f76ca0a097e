"""The folder of a run: may one be saved there, and where are its files; paths as users write them. Standard library
only."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import stat
import tempfile
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastcifar.errors import Notice, UserError
from fastcifar.escape import shown
from fastcifar.locks import WAIT_SECONDS, claimed

RECORD = "run.json"
"""The record of a run; a folder that holds one is a run's."""
WEIGHTS = "model.safetensors"
"""The weights of the evaluated network."""
BESIDE = ("log.tsv", "predictions.npz", WEIGHTS)
"""The files of a finished run that are put in their place before the record; a kill may come between."""
TRACE = "trace.json"
"""A few training steps of a profiled run, for Chrome's trace viewer."""
UNFINISHED = "unfinished.json"
"""What a run that is not finished yet was asked to do."""
CHECKPOINTS, EPOCHS, DIAGNOSE, TRACK = IN_TRAINING = ("checkpoints", "weights", "diagnose", "track")
"""The folders that are written while a run trains: the states that it goes on from, until it is finished; the weights
of every epoch, where they are kept; what its diagnoses found, and their figures; what its trackers wrote."""
FIGURES = "figures"
"""The folder of a run's figures, or those of several runs; they are drawn once they are finished."""
RESULTS = "results.json"
SETTINGS = "settings.json"
"""The file that makes a folder an experiment's: what its runs were asked to do."""
RUNS = "runs.jsonl"
"""The outcomes of several runs, a line each."""
_LARGEST_TEXT = 2**26
"""Bytes that a file of JSON may have; the record of a run takes 300 for each epoch."""
_LARGEST_LINES = 2**30
"""Bytes that a file of JSON lines may have: a record each."""
_DEEPEST = 32
"""Levels that values in a file of JSON may be nested; those of a record are 5."""
_said: set[tuple[str, int]] = set()
"""Damaged lines that there was a `Notice` of: the path, and the line's number."""
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
        found = Path(path).expanduser()
        os.fsencode(found)
        found.is_file()  # raises where everybody who asks would
    except (OSError, UnicodeEncodeError) as error:  # a name too long, a folder without permission to look into it
        raise UserError(f"{where} is {path}: {getattr(error, 'strerror', None) or error}; allowed: a path") from None
    except RuntimeError:
        user = Path(path).parts[0]
        raise UserError(f"{where} is {path}, and there is no home folder {user}; allowed: a path without it") from None
    return found


def run_folders(root: Path, on_error: Callable[..., Any] | None = None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Give `root` and the folders below it where runs may be, behind links too, with the names of what is in them."""
    seen = {os.path.realpath(root)}
    for name, folders, files in os.walk(root, onerror=on_error, followlinks=True):
        is_run = RECORD in files or UNFINISHED in files or re.fullmatch(r"seed-\d+", os.path.basename(name))
        within = [each for each in sorted(folders) if not (is_run and each in IN_TRAINING)]
        places = {each: os.path.realpath(Path(name, each)) for each in within}
        folders[:] = [each for each, place in places.items() if place not in seen]
        seen |= {*places.values()}
        yield Path(name), folders, files


def short_name(name: str) -> str:
    """Return the name of a data set for titles and lines: of a path, which may be long, what stands last."""
    return os.path.basename(name) or name if os.path.isabs(name) else name


def open_at_once(path: Path) -> BinaryIO:
    """Open a file to be read. A pipe is not waited for until something writes to it."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def is_regular(file: BinaryIO) -> bool:
    """Return whether an open file is a regular one; others, such as devices, may have no end."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def read_file(path: Path, what: str, most: int = _LARGEST_TEXT) -> bytes:
    """Return the bytes of a file; `what` it is, for the error. A pipe or a device is not waited for.

    Raises UserError where it is longer than `most` bytes, no regular file, or cannot be read."""
    try:
        with open_at_once(path) as file:
            if not is_regular(file):
                raise UserError(f"cannot read {what} {path}: it is a pipe or a device; allowed: a file")
            if os.fstat(file.fileno()).st_size > most:
                raise UserError(f"cannot read {what} {path}: it is too long; allowed: up to {most:,} bytes")
            return file.read()
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f"cannot read {what} {path}: {getattr(error, 'strerror', None) or error}") from None


def read_json(path: Path, what: str = "the file") -> dict[str, Any]:
    """Return the object in a file of JSON; `what` it is, for the error.

    Raises UserError for any other file, and for values that are nested beyond reason or given twice."""
    content = read_file(path, what)
    try:
        return parse_json(content)
    except UserError as error:
        raise UserError(f"cannot read {what} {path}: {error}; allowed: a JSON file as it was written") from None


def parse_json(content: bytes) -> dict[str, Any]:
    """Return the object that is written in JSON. Raises UserError where it is none, as `read_json` does."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise UserError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
        return found

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=once)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if not isinstance(value, dict):
        raise UserError("it is not an object")
    refuse_deep(value)
    return value


def refuse_deep(value: object) -> None:
    """Raise UserError for values of JSON that are nested beyond reason."""
    if _is_deep(value, _DEEPEST):
        raise UserError(f"it has values that are nested deeper than {_DEEPEST} levels")


def _is_deep(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deep(each, levels - 1) for each in inner)


def run_files(path: Path) -> tuple[Path, Path]:
    """Return the record and the weights of a run: those in its folder, or NAME.json and NAME.safetensors as experiments
    keep them, where `path` is one of these or NAME. They may be absent."""
    if not os.path.isdir(path) and path.name == RECORD:
        path = path.parent
    if not os.path.isdir(path):  # unlike Path's, False for a name too long
        name = path.with_suffix("") if path.suffix in (".json", Path(WEIGHTS).suffix) else path
        record = name.with_name(f"{name.name}.json")
        if os.path.isfile(record):
            return record, record.with_suffix(Path(WEIGHTS).suffix)
    return path / RECORD, path / WEIGHTS


def check_out(folder: str | os.PathLike[str], besides: Container[str] = ()) -> None:
    """Raise UserError unless `folder` is absent or empty, but for what a process that was killed left behind, and for
    entries of the names `besides`."""
    folder = user_path(folder, "the output folder")
    try:
        held = {entry.name for entry in folder.iterdir() if not entry.name.startswith(PARTIAL)}
        held = {name for name in held if name not in besides}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        what = f"output folder {folder} is a file" if folder.exists() else f"output folder {folder} is inside a file"
        raise UserError(f"{what}; allowed: a new or an empty folder") from None
    except OSError as error:  # a name too long, a folder without permission to read it
        raise UserError(f"output folder {folder} cannot be made: {error.strerror or error}") from None
    if UNFINISHED in held and RECORD not in held:
        allowed = f"fastcifar train --resume {folder}, or a new or an empty folder"
        raise UserError(f"output folder {folder} holds an unfinished run; allowed: {allowed}")
    if held:
        what = "a run" if RECORD in held else "files"
        raise UserError(f"output folder {folder} already holds {what}; allowed: a new or an empty folder")


def refuse_unwritable(path: Path, flag: str) -> None:
    """Raise UserError, which names the `flag`, unless a file can be written at `path`, whose folder is there."""
    place = user_path(path, flag)
    if not place.parent.is_dir() or place.is_dir():
        raise UserError(f"{flag} is {shown(path)}; allowed: a file in a folder that is there")
    with reserved(place.parent, shared=True):
        pass


def holds_earlier(out: Path, command: str, file: str, is_ours: Callable[[dict[str, Any]], bool]) -> bool:
    """Return whether `out`, in which `command` would put its result `file`, holds one of an earlier call. Raises
    UserError where it holds runs, an experiment, or a result that is not `is_ours`."""
    allowed = f"a new folder, or one of an earlier fastcifar {command}"
    for name in (RECORD, RUNS, UNFINISHED, SETTINGS):
        if (out / name).exists():
            whose = "an experiment" if name == SETTINGS else "fastcifar train"
            raise UserError(f"--out {out} holds {name} of {whose}; allowed: {allowed}")
    if not (out / file).exists():
        return False
    if not is_ours(read_json(out / file, "an earlier result")):
        raise UserError(f"--out {out} holds a {file} of another command; allowed: {allowed}")
    return True


@contextlib.contextmanager
def made(folder: Path, anew: bool = False) -> Iterator[Path]:
    """Make `folder` and its parents where they are absent, give it, and at the end remove those that are still empty.

    anew: make a folder that was not there, called NAME-2 where NAME is there, and so on.

    Raises UserError where it cannot be made.
    """
    name, made_here = folder.name, []
    try:
        try:
            for each in (*reversed(folder.parents), *[folder] * (not anew)):
                if not each.is_dir():
                    each.mkdir(exist_ok=True)  # another process may have made it just now
                    made_here.append(each)
            for number in itertools.count(2) if anew else ():
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    made_here.append(folder)
                    break
                folder = folder.with_name(f"{name}-{number}")
        except OSError as error:
            raise UserError(f"output folder {folder} cannot be made: {error.strerror or error}") from None
        yield folder
    finally:
        for each in reversed(made_here):
            with contextlib.suppress(OSError):  # it holds something
                each.rmdir()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is removed at the end. Raises UserError where there is no place for one."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="fastcifar-")
    except OSError as error:
        raise UserError(f"no temporary folder can be made: {error.strerror or error}; allowed: one in TMPDIR") from None
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def reserved(folder: Path, anew: bool = False, shared: bool = False) -> Iterator[Path]:
    """Make `folder`, prove that files can be written there, and keep it for this process while the block runs.

    anew: as `made` has it; the block is given the folder's path.
    shared: the folder may hold files, and other processes may use it too.

    Raises UserError where the folder cannot be written to, and unless `shared` where it is not empty or another process
    keeps it.
    """
    if not (anew or shared):
        check_out(folder)
    with made(folder, anew) as folder:
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=PARTIAL) as file:
                file.write(b"a file can be made and written here")
        except OSError as error:
            raise UserError(f"output folder {folder} cannot be written to: {error.strerror or error}") from None
        if shared:
            yield folder
            return
        with claimed(folder / f"{PARTIAL}lock") as is_ours:
            if not is_ours:
                raise UserError(f"another process trains into {folder}; allowed: another folder")
            check_out(folder)  # again: that process may have ended just now
            yield folder


def write_whole(path: Path, write: str | Callable[[Path], object]) -> None:
    """Write a file (a text, or what `write` makes of a path) so that it is there whole or not at all, whenever the
    process ends. Raises UserError where it cannot be written."""
    with made(path.parent):
        write_all(path.parent, {path.name: write})


def write_all(folder: Path, files: Mapping[str, str | Callable[[Path], object]]) -> None:
    """Write files of a folder as `write_whole` does, all of them or none: where the last one is, so are the others. Of
    files that were there before, some may be the new ones then and others the old ones; none is lost. Raises UserError
    where one cannot be written."""
    partial: dict[str, Path] = {}
    placed: list[Path] = []
    try:
        for name, write in files.items():
            path = partial[name] = folder / f"{PARTIAL}{secrets.token_hex(8)}{Path(name).suffix}"
            with path.open("x", encoding="utf-8") as file:  # with the permissions of any new file, unlike tempfile's
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if isinstance(write, str):
                    file.write(write)
            if not isinstance(write, str):
                write(path)
                path.chmod(mode)  # of safetensors, which puts a file of its own in the place
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        for name in files:
            placed += [path] if not (path := folder / name).exists() else []
            os.replace(partial[name], path)
        _sync(folder)
    except (OSError, UnicodeEncodeError) as error:  # a name of bytes that are no text, as file names may be
        raise UserError(f"cannot write {folder / name}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        left = [path for path in partial.values() if path.exists()]
        for path in [*left, *placed] if left else []:  # not all are in their places, be it for a signal
            with contextlib.suppress(OSError):  # a folder that became read-only meanwhile
                path.unlink()


def _sync(folder: Path) -> None:
    """Let the names of a folder's files outlast a power failure, where the system can."""
    with contextlib.suppress(OSError):  # Windows, some network file systems
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append `value` to a file of JSON lines, also beside other processes, in the place of a last line that one of them
    left torn. Raises UserError where that cannot be done."""
    line = json.dumps(value, allow_nan=False) + "\n"
    with claimed(path.with_name(f".{path.name}.lock"), wait=WAIT_SECONDS) as is_ours:
        if not is_ours:
            raise UserError(
                f"another process has kept {path} locked for {WAIT_SECONDS} s; allowed: one that lets it go"
            )
        try:
            with open(path, "ab+") as file:
                if tail := _last_line(file):
                    try:
                        parse_json(tail)
                        line = f"\n{line}"
                    except UserError:
                        file.truncate(file.seek(0, os.SEEK_END) - len(tail))
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _last_line(file: BinaryIO) -> bytes:
    """Return what is below the last newline of a file."""
    begin, tail = file.seek(0, os.SEEK_END), b""
    while begin and b"\n" not in tail:
        length = min(begin, max(2**16, len(tail)))
        begin = file.seek(begin - length)
        tail = file.read(length) + tail
    return tail[tail.rfind(b"\n") + 1 :]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines, none where it is absent. A line that is none, such as a torn last
    one, is left out with a `Notice`, once in a process. Raises UserError for a file that cannot be read."""
    lines = read_file(path, "the file", _LARGEST_LINES).splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        with contextlib.suppress(UserError):
            found.append(parse_json(line))
            continue
        if line.strip() and (damaged := (os.path.abspath(path), number)) not in _said:
            _said.add(damaged)
            warnings.warn(f"{path}: line {number} is torn or damaged, and is left out", Notice, stacklevel=2)
    return found
