"""Where a data set is looked for: the folder that the user names, `$FASTCIFAR_DATA`, or the user's cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TypeVar

from fastcifar.data.download import DownloadError, user_cache
from fastcifar.errors import DamagedData, UserError
from fastcifar.output import user_path

_Found = TypeVar("_Found")


def find_data(
    look: Callable[[Path], _Found | None],
    install: Callable[[Path], None],
    title: str,
    looked_for: str,
    data_dir: str | PathLike[str] | None,
    cache: Path | None = None,
) -> _Found:
    """Return what `look` finds at `data_dir`, else at `$FASTCIFAR_DATA`, else in `cache` (by default the user's), which
    `install` fills if need be.

    title, looked_for: the data set and its files, for the error.

    Raises UserError where a place that is named holds none.
    """
    for given_as, place in (("data_dir", data_dir), ("$FASTCIFAR_DATA", os.environ.get("FASTCIFAR_DATA"))):
        if place:
            path = user_path(place, given_as)
            found = look(path)
            if found is None:
                lack = f"holds no {title}" if path.exists() else "does not exist"
                raise UserError(f"{given_as} {path} {lack}; looked for {looked_for}")
            return found
    cache = cache or user_cache()
    found = look(cache)
    if found is None:
        install(cache)
        found = look(cache)
        assert found is not None  # it was installed, or that failed
    return found


@contextlib.contextmanager
def contents(folder: Path) -> Iterator[None]:
    """Raise DamagedData for what is refused of the files in `folder` while the block reads them. Of files that were
    downloaded it says how to have them again."""
    try:
        yield
    except UserError as error:
        if type(error) not in (UserError, DamagedData):
            raise
        again, text = "", str(error)
        with contextlib.suppress(ModuleNotFoundError, UserError):
            if user_cache() in folder.parents and "download it again" not in text:
                again = f"; remove {folder} to download it again"
        raise DamagedData(f"{text}{again}") from error


@contextlib.contextmanager
def reading(home: str) -> Iterator[None]:
    """Raise UserError for errors of the system while the block runs, and DownloadError where a package is absent that
    downloads need.

    home: an address of what is downloaded, for the error."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or 'the data'}: {error.strerror or error}") from error
    except ModuleNotFoundError as error:
        raise DownloadError(home, f"{error.name} is not installed") from error
