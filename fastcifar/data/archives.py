"""Readers of .tar, .tar.gz, .npz and .npy files that believe nothing of what these say of themselves: no claim is
allocated, nothing in them is run, and nothing is written.

A .tar is read here and not by `tarfile`, which holds in memory and parses whatever an extended header brings, takes
a damaged header for the end, and never meets gzip's checksum. An .npz is read by `zipfile` and numpy's reader of
headers, but not by `np.load`, which allocates what a header claims before it looks at the bytes that are there.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import math
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastcifar.errors import DamagedData, UserError

_PIECE = 1 << 20
"""Bytes that are read at once."""
_BLOCK = 512
"""Bytes of a header in a tar file; contents fill whole blocks."""
_HEADER = 1024
"""Bytes that the header of an array may have; numpy writes 118 for a plain one."""
_DENSEST = 1032
"""Bytes that deflate can make of one."""
_LIKE_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE)


def state_of(status: os.stat_result) -> tuple[int, ...]:
    """Return a file's size, and in nanoseconds when its content and its entry were last changed. The entry's time tells
    where the content's was set back, and where another file was moved to its place."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def damage(name: str) -> Iterator[None]:
    """Raise DamagedData, that `name` is damaged, for whatever the readers of a file raise while the block runs, but for
    errors of the system."""
    try:
        yield
    except UserError as error:
        if type(error) is UserError:
            raise DamagedData(str(error)) from error
        raise
    except Exception as error:  # a damaged file can raise almost anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DamagedData(f"{name} is damaged: {reason}") from error


def read_tar_gz(path: Path, most: int) -> Iterator[tuple[str, int, io.BufferedReader]]:
    """Give the files in a .tar.gz as `read_tar` does; their checksum is verified at the end."""
    with gzip.open(path) as packed:
        yield from read_tar(packed, most)


def read_tar(packed: io.BufferedReader | gzip.GzipFile, most: int) -> Iterator[tuple[str, int, io.BufferedReader]]:
    """Give the name, the size and the open content of each file in a tar file, in one pass, each to be read before the
    next. To be run, with its consumer, in a block of `damage`.

    packed: the open file. What is not read of a plain one's contents is passed over.
    most: bytes that the archive may have when unpacked.

    Raises an error for links, devices, sparse files and files that are renamed; for a checksum that is wrong; and for
    bytes after the end.
    """
    left = most
    whole = None if isinstance(packed, gzip.GzipFile) else os.fstat(packed.fileno()).st_size

    def take(size: int) -> bytes:
        content = packed.read(size)
        if len(content) != size:
            raise EOFError("it ends too early")
        return content

    while (block := packed.read(_BLOCK)).strip(b"\0"):
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        size = 0 if member.isdir() else member.size
        left -= _BLOCK + size
        if size < 0 or left < 0:
            raise ValueError(f"it holds more than {most:,} bytes")
        content = _Part(packed, size)
        if member.type in _EXTENDED and size <= _PIECE:
            text = take(content.left)
            content.left = 0
            if any(word in text for word in (b"path=", b"size=", b"GNU.sparse")):
                raise ValueError("an extended header changes a file's name or size")
        elif member.type in _LIKE_FILES:
            yield member.name, size, io.BufferedReader(content)
        elif not member.isdir():
            raise ValueError(f"it holds a member of type {member.type!r}; allowed: files and folders")
        if whole is not None and packed.seek(content.left, os.SEEK_CUR) <= whole:
            content.left = 0
        while content.left:
            content.left -= len(take(min(content.left, _PIECE)))
        take(-size % _BLOCK)
    while block:  # to the end, where the checksum is
        left -= len(block)
        if left < 0 or block.strip(b"\0"):
            raise ValueError("bytes follow its end")
        block = packed.read(_PIECE)


class _Part(io.RawIOBase):
    """The next `left` bytes of a stream."""

    def __init__(self, stream: io.BufferedReader | gzip.GzipFile, left: int) -> None:
        self.stream, self.left = stream, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = self.stream.readinto(memoryview(buffer)[: self.left])  # pyright: ignore[reportArgumentType]
        if self.left and not size:
            raise EOFError("it ends within a file")
        self.left -= size
        return size


def npz_keys(path: Path) -> set[str]:
    """Return the names of the arrays in an .npz; none where it is damaged, or no .npz."""
    with contextlib.suppress(UserError), damage(str(path)), _Pieces(path) as file, zipfile.ZipFile(file) as members:
        return {name.removesuffix(".npy") for name in members.namelist() if name.endswith(".npy")}
    return set()


def read_npz(path: Path, key: str, kinds: str, shape: tuple[int, ...], allowed: str) -> np.ndarray:
    """Read one array of an .npz, whose checksum is verified.

    kinds: the kinds of types that it may have, as in `np.dtype.kind`, with sizes or without: "iu", "u1".
    shape: the shape that it must have.
    allowed: both, for the error.

    Raises UserError for another array, before its memory is allocated.
    """
    with damage(f"{path}: {key}"), _Pieces(path) as file, zipfile.ZipFile(file) as members:
        found = [member for member in members.infolist() if member.filename == f"{key}.npy"]
        if len(found) != 1:
            raise ValueError(f"it is there {len(found)} times")
        if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is packed in a way that numpy never does; allowed: stored or deflated")
        with members.open(found[0]) as member:
            return _read_array(member, found[0].file_size, f"{path}: {key}", kinds, shape, allowed)


def read_npy(
    file: io.BufferedReader,
    size: int,
    name: str,
    kinds: str,
    shape: tuple[int, ...],
    allowed: str,
    rows: slice | None = None,
) -> np.ndarray:
    """Read the array in an .npy file, or of its first axis the `rows` alone; the arguments are those of `read_npz`.

    file: where it begins in an open file.
    size: its bytes.
    name: what it is in errors.
    """
    with damage(name):
        return _read_array(file, size, name, kinds, shape, allowed, rows)


def _read_array(
    file, size: int, name: str, kinds: str, shape: tuple[int, ...], allowed: str, rows: slice | None = None
) -> np.ndarray:
    start = file.tell()
    has_shape, is_fortran, dtype = _npy_header(file)
    if has_shape != shape or not (dtype.kind in kinds and (kinds == "iu" or dtype.str[1:] == kinds)):
        raise UserError(f"{name} is {dtype} {list(has_shape)}; allowed: {allowed}")
    whole = math.prod(shape) * dtype.itemsize
    if size - (file.tell() - start) != whole:
        raise ValueError(f"its size is {size:,} bytes; its shape needs {whole:,}")
    if rows is not None:
        if is_fortran:
            raise ValueError("its images do not follow each other in the file")
        file.seek(file.tell() + rows.start * (whole // shape[0]))
        shape = (rows.stop - rows.start, *shape[1:])
    array = np.empty(shape[::-1] if is_fortran else shape, dtype)
    fill(array, file)
    return array.T if is_fortran else array


def fill(array: np.ndarray, file) -> None:
    """Read the bytes of an array, which lies in one piece, from an open file. Raises EOFError where it has too few."""
    content = array.reshape(-1).view(np.uint8).data
    while content:
        read = file.readinto(content[:_PIECE])
        if not read:
            raise EOFError("it ends too early")
        content = content[read:]


def npz_header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and the type of one array of an .npz, without its values. Raises UserError for an array that is
    not there once, and for one that is larger than its bytes in the file can be unpacked to."""
    with damage(f"{path}: {key}"), _Pieces(path) as file, zipfile.ZipFile(file) as members:
        found = [member for member in members.infolist() if member.filename == f"{key}.npy"]
        if len(found) != 1:
            raise ValueError(f"it is there {len(found)} times")
        with members.open(found[0]) as member:
            shape, _, dtype = _npy_header(member)
        size, packed = math.prod(shape) * dtype.itemsize, min(found[0].compress_size, path.stat().st_size)
        if min(shape, default=0) < 0 or size > _DENSEST * packed:
            raise ValueError(f"its shape {list(shape)} needs more bytes than it has")
        return shape, dtype


def _npy_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the shape, the order and the type of an array from the beginning of an .npy file."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): (2, np.lib.format.read_array_header_1_0), (2, 0): (4, np.lib.format.read_array_header_2_0)}
    readers[3, 0] = readers[2, 0]  # which differ in the names of fields alone, and types with fields are refused
    if version not in readers:
        raise ValueError(f"its format is {version}; allowed: {' or '.join(map(str, readers))}")
    width, read = readers[version]
    start = file.read(width)
    size = int.from_bytes(start, "little")
    if size > _HEADER:  # Python's parser, which numpy gives it to, is no match for what is deeply nested
        raise ValueError(f"its header is {size:,} bytes; allowed: up to {_HEADER:,}")
    return read(io.BytesIO(start + file.read(size)))


class _Pieces(io.BufferedReader):
    """A file that is read in pieces. What asks for more at once, as a zip file's directory can, follows a claim."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(_PIECE + 1 if size is None or size < 0 else min(size, _PIECE + 1))
        if len(content) > _PIECE:
            raise ValueError(f"more than {_PIECE:,} bytes are asked for at once")
        return content
