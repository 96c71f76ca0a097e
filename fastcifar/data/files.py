"""Data sets that are published as files which are read as they are: where these are, and whether they are the official
ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from fastcifar.catalogue import places_of
from fastcifar.data.cache import install_files
from fastcifar.data.fetch import Pinned
from fastcifar.data.homes import homes_of
from fastcifar.data.places import find_data, reading
from fastcifar.data.releases import Published
from fastcifar.errors import UserError


def find_files(
    published: Published,
    data_dir: str | PathLike[str] | None,
    mirror: str | None = None,
    forms: Sequence[Sequence[str]] = (),
    cache: Path | None = None,
) -> list[Path]:
    """Return the files of a data set, in `data_dir`, else `$FASTCIFAR_DATA`, else `cache` (by default the user's), to
    which they are downloaded if need be: in that folder, or in one of the set's name in it.

    forms: names of files that hold the data as well, each list all of it; those as published are looked for first.

    Raises UserError where a place that is named lacks them, and DownloadError if a download fails.
    """
    forms = [[file.filename for file in published.files], *forms]
    homes = homes_of(published.files, published.homes, mirror)
    files = ", or ".join(" and ".join(form) for form in forms)
    looked_for = f"{files}, in it or in its {' or '.join(f'{name}/' for name in published.folders)}"

    def look(place: Path) -> list[Path] | None:
        if place.is_file():
            return [place] if [place.name] in forms else None
        for form in forms:
            for folder in places_of(published.name.partition(":")[0], place):
                found = [folder / name for name in form]
                if all(path.is_file() for path in found):
                    return found
        return None

    with reading(homes[0].url):
        return find_data(
            look,
            lambda cache: install_files(homes, cache / published.folders[0]),
            *(published.title, looked_for, data_dir, cache),
        )


def verified(paths: Sequence[Path], files: Sequence[Pinned]) -> str:
    """Return how files are verified: by their published hashes, where they are the official ones, else by what is read
    of them only: people have written them again.

    Raises UserError where some are the official ones and others are not."""
    others = [path.name for path, file in zip(paths, files, strict=True) if not is_official(path, file)]
    if 0 < len(others) < len(files):
        folder, names = paths[0].parent, ", ".join(others)
        raise UserError(f"{folder} is damaged: {names} is not the official file, as the others are")
    algorithm = "md5" if files[0].md5 else "sha256"
    return "sizes and labels only" if others else f"{algorithm} of the official files"


def is_official(path: Path, file: Pinned) -> bool:
    """Return whether a file has the size and the hash that are published."""
    if path.stat().st_size != file.size:
        return False
    digest = hashlib.md5(usedforsecurity=False) if file.md5 else hashlib.sha256()
    with open(path, "rb", buffering=0) as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == (file.md5 or file.sha256)
