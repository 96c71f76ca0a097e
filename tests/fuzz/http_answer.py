"""The answer of a home to a download, status and headers and all; every connection gets the same one."""

from __future__ import annotations

import gzip
import hashlib
import io
import urllib.request
import warnings
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any

from fastcifar.data import fetch
from fastcifar.data.fetch import Home, Limits, Pinned, part_of
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line

CONTENT = gzip.compress(Random(3).randbytes(2000), mtime=0)
ARCHIVE = Pinned("set.tar.gz", "set", len(CONTENT), hashlib.md5(CONTENT).hexdigest())
HERE = 700
"""Bytes that are there of the archive where the answer has the rest."""
LIMITS = Limits(tries=2, gain=1, pause=0.0)
LINES = (
    b"Content-Length: 99999999999999",
    b"Transfer-Encoding: chunked",
    b"Location: /",
    b"Location: file:///etc/hosts",
)
LINES += (b"Location: http://[::1", b"Content-Range: bytes 700-1/*", b"ETag: \xff\0", b"Content-Encoding: gzip", b": x")


def answer(status: bytes, headers: str, content: bytes = b"") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers.encode().split(b"\n"), b"", content])


def seeds() -> dict[str, bytes]:
    size = len(CONTENT)
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, CONTENT)
    rest = f"Content-Length: {size - HERE}\nContent-Range: bytes {HERE}-{size - 1}/{size}"
    return {
        "whole": answer(b"200 OK", f"Content-Length: {size}\nETag: x", CONTENT),
        "chunks": answer(b"200 OK", "Transfer-Encoding: chunked", chunks),
        "rest": answer(b"206 Partial Content", rest, CONTENT[HERE:]),
        "no length": answer(b"200 OK", "Connection: close", CONTENT),
        "redirect": answer(b"302 Found", "Location: https://another.place/set.tar.gz"),
        "page": answer(b"200 OK", "Content-Type: text/html", b"<html>"),
    }


def mutate(data: bytes, random: Random) -> bytes:
    """Change the status, or add a header."""
    start, _, rest = data.partition(b"\r\n")
    if random.random() < 0.4:
        return b"HTTP/1.1 %d %b\r\n%b" % (random.choice((100, 204, 206, 301, 416, 503, 999)), b"a" * 9, rest)
    return b"\r\n".join([start, *random.choices(LINES, k=random.randrange(1, 4)), rest])


class _Socket:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self.data)

    def __getattr__(self, name: str) -> Callable[..., None]:  # sendall, close, ...
        return lambda *_: None


def _opener(data: bytes) -> urllib.request.OpenerDirector:
    class Connection(HTTPConnection):
        def connect(self) -> None:
            self.sock = _Socket(data)

    class Handler(urllib.request.AbstractHTTPHandler):
        def http_open(self, request: urllib.request.Request) -> Any:
            return self.do_open(Connection, request)

        https_open = http_open
        http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    opener = urllib.request.OpenerDirector()
    for handler in (
        Handler,
        fetch._NoRedirects,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    return opener


def check(data: bytes, folder: Path) -> bool | None:
    part = part_of(folder, ARCHIVE)
    if data.startswith(b"HTTP/1.1 206"):
        part.write_bytes(CONTENT[:HERE])
    usual, fetch._opener = fetch._opener, lambda: _opener(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path, _ = fetch.fetch([Home("http://a.place/set.tar.gz", ARCHIVE)], folder, LIMITS)
    except UserError as error:
        one_line(error)
        assert not part.exists() or part.stat().st_size <= len(CONTENT)
        return None if data in (seeds()["redirect"], seeds()["page"]) else False
    finally:
        fetch._opener = usual
    assert path.read_bytes() == CONTENT, "accepted"
    return True
