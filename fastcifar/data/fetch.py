"""The download of an archive: from the first of its homes that is fast, going on where an earlier download broke off.

It is done by urllib: requests reads all that comes along with a redirect, however much that is.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import ssl
import string
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from fastcifar.data.download import DownloadError, progress
from fastcifar.errors import Notice

_REDIRECTS = 10
_CHUNK = 1 << 18
_HASHED = 1 << 24
_PAGE = "sends a web page in place of the archive (perhaps the login page of this network)"


@dataclass(frozen=True)
class Pinned:
    """A published archive, which its size and its hashes name wherever it comes from."""

    filename: str
    folder: str
    """The folder that it unpacks to, or is kept in."""
    size: int
    """In bytes."""
    md5: str
    sha256: str = ""
    """This or `md5` is empty where it is not known."""
    start: bytes = field(default=b"\x1f\x8b", kw_only=True)
    """The first bytes of the file, by which another one is told at once; those of gzip unless given."""


@dataclass(frozen=True)
class Home:
    """An address of an archive."""

    url: str
    archive: Pinned
    chosen: bool = False
    """The user named it: it is tried before the others."""


@dataclass(frozen=True)
class Limits:
    """How long a home, and a process that downloads, is waited for."""

    stall: float = 30.0
    """Seconds without a byte, after which a connection is given up."""
    window: float = 20.0
    """Seconds over which the speed is measured."""
    slow: float = 200_000.0
    """Bytes a second; below it another home is tried."""
    tries: int = 3
    """A home is given up after so many connections in a row that break off with less than `gain` new bytes each."""
    gain: int = 100_000
    pause: float = 1.0
    """Seconds before the second of these connections, doubled before each further one."""
    idle: float = 60.0
    """Seconds that another process may download without any progress."""


LIMITS = Limits()


class _GivenUp(Exception):
    """A home has no use; the message says why."""


class _BrokenOff(_GivenUp):
    """A connection ended too early; another one may go on."""


class _Slow(_GivenUp):
    """A home is slow: `speed` bytes a second."""

    def __init__(self, message: str, speed: float = 0.0) -> None:
        super().__init__(message)
        self.speed = speed


def part_of(folder: Path, archive: Pinned) -> Path:
    """Return the file in `folder` that an archive's download is in until it is unpacked."""
    return folder / f"{archive.filename}.part"


def remove_part(part: Path) -> None:
    """Remove what is there of a download."""
    for path in (part, _note(part)):
        path.unlink(missing_ok=True)


def fetch(homes: Sequence[Home], folder: Path, limits: Limits = LIMITS) -> tuple[Path, Pinned]:
    """Download the archive of one of `homes` to `folder`, and return its path there and which it is.

    The homes are tried in turn: those that the user chose, then those of which most is here already, then as they come.
    A slow one is left for the next, and where all are slow the fastest goes on. Each turn to a home that works is a
    `Notice`. A home that breaks off, or another with the same archive, goes on where the file ends. The file's hashes
    are those of the archive in the end.

    Raises DownloadError, with what was wrong at each home, and OSError where `folder` cannot be written to.
    """
    left = sorted(dict.fromkeys(homes), key=lambda home: _preference(home, folder))
    first = left[0].url
    slow: dict[Home, float] = {}
    reasons: dict[str, str] = {}
    turns: list[str] = []
    while left or slow:
        patient = len(left) + len(slow) == 1 or not left
        home = left.pop(0) if left else max(slow, key=slow.__getitem__)
        slow.pop(home, None)
        part = part_of(folder, home.archive)
        try:
            return _fetch_from(home, part, limits, patient, turns), home.archive
        except _Slow as error:
            slow[home], reason = error.speed, str(error)
        except _GivenUp as error:
            reason = reasons[home.url] = _plain(str(error))
            if not (part.is_file() and part.stat().st_size):
                remove_part(part)
        following = left[0] if left else max(slow, key=slow.__getitem__, default=None)
        if following:
            turns.append(f"{home.url} {reason}; going on with {following.url}")
    others = [f"{url} {reason}" for url, reason in reasons.items() if url != first]
    raise DownloadError(first, "; ".join([reasons[first], *others]))


def _preference(home: Home, folder: Path) -> tuple[bool, int, bool]:
    part = part_of(folder, home.archive)
    size = part.stat().st_size if part.is_file() else 0
    return not home.chosen, -size, size > 0 and _noted(part).get("url") != home.url


def _fetch_from(home: Home, part: Path, limits: Limits, patient: bool, turns: list[str]) -> Path:
    """Complete the file `part` from a home and return it. Raises _GivenUp, and _Slow unless `patient`.

    turns: how it came to this home; said, and emptied, when it sends something.
    """
    with part.open("ab") as file:
        if file.tell() > home.archive.size:
            file.truncate(0)
        earlier = file.tell()
    meter, is_anew = _Meter(limits, patient), False
    with progress(home.archive.filename, home.archive.size, home.url) as show:

        def arrived(done: int) -> None:
            while turns:
                warnings.warn(turns.pop(0), Notice, stacklevel=2)
            show(done)

        while True:
            _receive(home, part, limits, meter, arrived)
            wrong = _wrong_hash(part, home.archive)
            if not wrong:
                return part
            may_be_mixed = not is_anew and (earlier or _noted(part).get("mixed"))
            remove_part(part)
            if not may_be_mixed:
                raise _GivenUp(f"sends other bytes: {wrong}")
            warnings.warn(f"{part.name} was damaged, and is downloaded from the beginning", Notice, stacklevel=2)
            part.touch()
            is_anew = True


class _Meter:
    """Bytes received from a home, and its speed over the last seconds."""

    def __init__(self, limits: Limits, patient: bool) -> None:
        self._limits, self._patient = limits, patient
        self._since, self._received = time.monotonic(), 0
        self.total = 0

    def add(self, count: int, rest: int) -> None:
        """Count bytes, of which `rest` are still to come. Raises _Slow at the end of a slow window, unless all will be
        there within another one."""
        self.total += count
        self._received += count
        seconds = time.monotonic() - self._since
        if seconds >= self._limits.window:
            speed = self._received / seconds
            self._since, self._received = time.monotonic(), 0
            if not self._patient and speed < self._limits.slow and rest > speed * self._limits.window:
                raise _Slow(f"is slow: {speed / 1000:,.0f} kB/s", speed)


def _receive(home: Home, part: Path, limits: Limits, meter: _Meter, show: Callable[[int], None]) -> None:
    """Lengthen `part` to the archive's size, over as many connections as it takes while each brings something new."""
    most, strikes = part.stat().st_size, 0
    while (size := part.stat().st_size) < home.archive.size:
        part.touch()  # processes that wait see that something is done
        try:
            _copy(home, part, limits.stall, meter, show)
        except _BrokenOff:
            if not meter.total:
                raise
            size = part.stat().st_size
            strikes = 0 if size - most >= limits.gain else strikes + 1
            most = max(most, size)
            if strikes >= limits.tries:
                raise
            meter.add(0, home.archive.size - size)
            time.sleep(limits.pause * 2 ** (strikes - 1) if strikes else 0)


def _copy(home: Home, part: Path, stall: float, meter: _Meter, show: Callable[[int], None]) -> None:
    """Append to `part` what one connection brings, or write it anew where the home cannot begin in the middle."""
    size, place = home.archive.size, part.stat().st_size
    with contextlib.closing(_answer(home.url, place, stall)) as answer:
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        place = _begin(answer, place, size)
        noted = _noted(part)
        # Each machine of a mirror may name the same file's version otherwise: the hashes decide in the end.
        is_same = noted.get("version") in (None, version) or noted.get("url") != home.url or not version
        is_mixed = bool(place and (noted.get("mixed") or not is_same))
        chunks = _chunks(answer, size - place, stall)
        first = next(chunks, b"")
        if not place and first and not first.startswith(home.archive.start[: len(first)]):
            raise _GivenUp(_PAGE if _is_page(answer) else "sends something else than an archive")
        with part.open("r+b") as file:
            if not place:
                file.truncate(0)
            note = {"url": home.url, "version": version, "mixed": is_mixed}
            _note(part).write_text(json.dumps(note), encoding="utf-8")
            file.seek(place)
            show(place)
            while first:
                file.write(first)
                file.flush()
                place += len(first)
                show(place)
                meter.add(len(first), size - place)
                first = next(chunks, b"")
    if place < size:
        raise _BrokenOff(f"breaks off after {place:,} of {size:,} bytes")


def _begin(answer: Any, asked: int, size: int) -> int:
    """Return the place in the file that an answer begins at: the one that was asked for, or 0. Raises _GivenUp for an
    answer that is not the archive's."""
    status = answer.status or 200  # a file on this machine has none
    total, place = answer.headers.get("Content-Length"), 0
    if status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""), re.ASCII)
        if not found or _digits(found[1]) != str(asked):
            raise _GivenUp("sends another part of the archive than was asked for")
        place, total = asked, None if found[2] == "*" else found[2]
    elif status != 200:
        raise _GivenUp(f"answers {status}")
    if total is not None and _digits(total) != str(size):
        raise _GivenUp(_PAGE if _is_page(answer) else f"holds a file of {total} bytes; the archive has {size}")
    return place


def _is_page(answer: Any) -> bool:
    """Return whether an answer says that it is a web page, as some servers do of an archive too."""
    return answer.headers.get_content_type() == "text/html"


def _digits(number: str) -> str:
    """Return a number as Python writes it, however many digits a server gives it."""
    return number.strip().lstrip("0") or "0"


def _answer(url: str, place: int, stall: float) -> Any:
    """Ask for a file from `place` on, and return the answer, open. Raises _GivenUp or _BrokenOff."""
    headers = {"User-Agent": "fastcifar", "Accept-Encoding": "identity"}
    if place:
        headers["Range"] = f"bytes={place}-"
    for _ in range(_REDIRECTS):
        try:
            return _opener().open(urllib.request.Request(url, headers=headers), timeout=stall)
        except urllib.error.HTTPError as error:
            error.close()
            location = error.headers.get("Location")
            if error.code == 416 and headers.pop("Range", None):  # it is shorter than what is here
                continue
            if error.code == 429 or error.code >= 500:
                raise _BrokenOff(f"answers {error.code} {error.reason}") from None
            if not (location and 300 <= error.code < 400):
                raise _GivenUp(f"answers {error.code} {error.reason}") from None
            url = urljoin(url, quote(location, safe=string.punctuation))
            if urlsplit(url).scheme not in ("http", "https"):
                raise _GivenUp(f"redirects to {url}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _BrokenOff(f"cannot be reached: {_said(error, stall)}") from None
    raise _GivenUp(f"redirects more than {_REDIRECTS} times")


def _chunks(answer: Any, most: int, stall: float) -> Iterator[bytes]:
    """Yield an answer's bytes as they come, `most` in all at the most. Raises _BrokenOff."""
    try:
        while most and (chunk := answer.read1(min(_CHUNK, most))):
            most -= len(chunk)
            yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _BrokenOff(f"breaks off: {_said(error, stall)}") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to `_answer`."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens addresses, with the proxies of the environment, and the certificates of the system and of
    certifi where that is installed: some Pythons find none of the system's."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))


def _said(error: Exception, stall: float) -> str:
    """Return what was wrong with a connection, in words."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not valid ({reason.verify_message})"
    if isinstance(reason, TimeoutError):
        return f"no byte for {stall:g} s"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def _wrong_hash(path: Path, archive: Pinned) -> str | None:
    """Return what is wrong with the hashes of a file, or None."""
    digests = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASHED):
            for digest in digests.values():
                digest.update(chunk)
            path.touch()  # processes that wait see that something is done
    for name, digest in digests.items():
        expected = getattr(archive, name)
        if expected and digest.hexdigest() != expected:
            return f"their {name} is {digest.hexdigest()}, that of {archive.filename} {expected}"
    return None


def _plain(text: str) -> str:
    """Return a line of what a server may have written, without what a terminal would obey."""
    text = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])


def _note(part: Path) -> Path:
    """Return the file that says where a part is from."""
    return part.with_name(f"{part.name}.json")


def _noted(part: Path) -> dict[str, Any]:
    """Return the address that a part is from, the file's version there, and whether other versions are in it; nothing
    where that is not known."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(noted := json.loads(_note(part).read_bytes()), dict):
            return noted
    return {}
