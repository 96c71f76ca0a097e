"""What is on disk: room for runs, and the data set."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from fastcifar.catalogue import find
from fastcifar.doctor.finding import Finding, fail, import_error, imported, ok, warn, worst
from fastcifar.errors import UserError
from fastcifar.machine import GIB

_LEAST_FREE = GIB
_DATA, _MIRROR = "FASTCIFAR_DATA", "FASTCIFAR_MIRROR"


def disk(out: Path) -> Finding:
    """Examine the folders that trainings write to."""
    folders = {"runs": out, "temporary files": Path(tempfile.gettempdir())}
    if not import_error("platformdirs"):  # whose lack is another check's finding
        folders["cache"] = imported("platformdirs").user_cache_path("fastcifar")
    return worst([_folder(what, path.absolute()) for what, path in folders.items()])


def _folder(what: str, path: Path) -> Finding:
    """Examine whether a folder, or the nearest around it that exists, can be written to and has room."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        found = f"{what}: cannot write to {there}: {error.strerror}"
        return (
            fail(found, "train in another folder, or with --out DIR")
            if what == "runs"
            else warn(found, _ELSEWHERE[what])
        )
    free = shutil.disk_usage(there).free
    found = f"{what}: {free / GIB:.1f} GiB free for {path}"
    return ok(found) if free >= _LEAST_FREE else warn(found, f"free some room for {what}: 1 GiB or more")


_ELSEWHERE = {"cache": "XDG_CACHE_HOME=DIR, or --data-dir DIR", "temporary files": "TMPDIR=DIR"}


def data(name: str, data_dir: Path | None, mirror: str | None = None) -> Finding:
    """Load the data set, which checks it and the mirror's address; nothing is downloaded."""
    dataset, where = imported("fastcifar.data", "torch"), data_dir
    entry, variant = find(name)
    word = f"{name}:{next(iter(entry.variants))}" if entry.look and not variant else name
    if data_dir is None and not os.environ.get(_DATA) and entry.homes:
        where = imported(
            "fastcifar.data.download", "torch"
        ).user_cache()  # a folder that is named is read, and never filled
    try:
        loaded = dataset.load_dataset(word, where, "cpu", mirror=mirror)
    except UserError as error:
        if str(error).startswith(("mirror ", f"${_MIRROR} ")):
            return fail(f"{error}", f"--mirror or {_MIRROR}: such an address; or neither")
        absent = where is not data_dir and any(lack in str(error) for lack in (" holds no ", " does not exist"))
        if not absent:
            return fail(f"{error}", f"--data-dir or {_DATA}: another place; without either, it is downloaded")
        found = f"{name} is not in {where}: the first training downloads it ({entry.megabytes:,} MB)"
        return warn(found, f"--data-dir DIR or {_DATA}=DIR, where you have it already; --dataset synthetic needs none")
    found = f"{name}: {loaded.source}, {len(loaded.train):,} training and {len(loaded.test):,} test images"
    return ok(f"{found}; verified by {loaded.verified or 'being read whole'}")
