"""Where the files of a data set are downloaded from: the user's mirror, then the homes in the catalogue."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from urllib.parse import SplitResult, quote, urlsplit

from fastcifar.data.fetch import Home, Pinned
from fastcifar.errors import UserError

_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip", ".gz", ".mat", ".npy")
"""Endings of files, where an address is of no folder."""


def homes_of(files: Sequence[Pinned], known: Sequence[str], mirror: str | None) -> list[Home]:
    """Return where these files are, first on the user's mirror (`mirror`, else `$FASTCIFAR_MIRROR`).

    known: addresses, each of one of the files, or of a folder that holds them all, with a slash at its end.

    Raises UserError where the mirror is no address.
    """
    archives = {archive.filename: archive for archive in files}
    found = []
    where, url = ("mirror", mirror) if mirror else ("$FASTCIFAR_MIRROR", os.environ.get("FASTCIFAR_MIRROR"))
    if url:
        allowed = f"the address (http, https or file) of a folder, or of {' or '.join(archives)}"
        parts = _split(url)
        if "@" in parts.netloc or (not parts.netloc and "@" in url):  # where it is no address it may be a password too
            raise UserError(f"{where} has a user name or password before an @; allowed: {allowed}, without these")
        name = parts.path.rpartition("/")[2]
        wrong_name = name.endswith(_ENDINGS) and name not in archives
        is_address = parts.scheme == "file" or (parts.scheme in ("http", "https") and parts.netloc)
        if not is_address or wrong_name or not url.isprintable():
            raise UserError(f"{where} is {url!r}; allowed: {allowed}")
        folder = parts.path.rstrip("/")  # the file's name goes before a query such as ?token=
        paths = {name: parts.path} if name in archives else {each: f"{folder}/{each}" for each in archives}
        found = [Home(parts._replace(path=path).geturl(), archives[each], True) for each, path in paths.items()]
    for url in known:
        path = urlsplit(url).path
        names = archives if path.endswith("/") else [path.rpartition("/")[2]]
        found += [Home(url + name if path.endswith("/") else url, archives[name]) for name in names]
    unique: dict[str, Home] = {}
    for home in found:
        unique.setdefault(home.url, home)
    return [*unique.values()]


def _split(url: str) -> SplitResult:
    """Return the parts of an address, with escapes for what is not ASCII and for spaces; none where it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError where it is no number
        netloc = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    except ValueError:
        return urlsplit("")
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return parts._replace(netloc=netloc, path=path, query=query)
