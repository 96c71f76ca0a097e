"""An .npz of images and labels: a zip file of arrays, each with a header that is Python's text of a dictionary."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.cifar import load_release
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line
from tests.fuzz.mutations import COUNTS, mutated
from tests.fuzz.releases import IMAGES, LABELS, RECORDS, RELEASE, TRUE_SIZE, assert_same

TRAIN = 5 * RECORDS
SPLIT = {
    **{"train_images": IMAGES[:TRAIN], "train_labels": LABELS.reshape(-1)[:TRAIN].astype(np.uint8)},
    **{"test_images": IMAGES[TRAIN:], "test_labels": LABELS.reshape(-1)[TRAIN:].astype(np.int32)},
}
WHOLE = {"images": np.asfortranarray(IMAGES), "labels": LABELS.reshape(-1)}
HEADERS = (
    *("{" * 3000, "[" * 5000, "(" * 9000, "{'a':" * 1900, "-" * 9000, "1+" * 4000 + "1", "x" * 20_000, "", "{}", "[]"),
    *(
        "__import__('os').system('touch ../escaped')",
        "(lambda: 0)()",
        "{1: 2, 'a': 3}",
        "{[]: 1}",
        "'",
        '"""',
        "\\",
        "\0",
    ),
    *("{'descr': '|u1', 'fortran_order': 0, 'shape': ()}", "{'descr': '|O', 'fortran_order': False, 'shape': (24,)}"),
)
DTYPES = (
    "'|O'",
    "'|V9'",
    "'<U9'",
    "[('a', '|u1')]",
    "'>u2'",
    "'<i8'",
    "'|b1'",
    "'<M8[s]'",
    "','",
    "3",
    "None",
    "'x'",
    "''",
)
SHAPES = (
    *("()", "(0,)", "(-1,)", "(-24, -32, 32, 3)", "(2147483648, 4)", "(4294967296, 4294967296)", "(True, 32, 32, 3)"),
    *("(24.0, 32, 32, 3)", "(134217728,)", "(24, 32, 32, 3, 1)", "(24, 32, 0, 3)", "(10000000000,)", "[24, 32, 32, 3]"),
)

CASES = 200


def seeds() -> dict[str, bytes]:
    return {
        **{"split": zipped(parts(SPLIT)), "whole": zipped(parts(WHOLE))},
        **{"packed": zipped(parts(WHOLE), zipfile.ZIP_DEFLATED), "numpy": _saved(SPLIT)},
    }


def _saved(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def parts(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Return the .npy files of arrays by name."""
    files = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, array)
        files[f"{name}.npy"] = file.getvalue()
    return files


def header(text: str, version: int = 1, size: int | None = None) -> bytes:
    """Return the beginning of an .npy file with this text as its header, and the size that it claims."""
    content = text.encode("latin1", "replace") + b"\n"
    size = len(content) if size is None else size
    return b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little") + content


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


@functools.cache
def bombs() -> list[bytes]:
    """Return files that are small when packed: an array followed by zeros, headers of 64 MiB, many members; and
    files that are packed by methods whose readers unpack whole pieces, however large."""
    files = parts(WHOLE)
    labels = files["labels.npy"]
    changes = [
        *({"labels.npy": labels + bytes(2**26)}, {"images.npy": header(" " * 2**26, 2)}),
        *({"labels.npy": header("1" * 2**26, 2)}, {f"{number}.npy": b"" for number in range(20_000)}),
    ]
    made = [zipped({**files, **change}, zipfile.ZIP_DEFLATED) for change in changes]
    return [*made, *(zipped(files, method) for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))]


def mutate(data: bytes, random: Random) -> bytes:
    """Change an array's header, a member, its sizes in the directory, or the directory."""
    arrays = SPLIT if random.random() < 0.5 else WHOLE
    files, method = parts(arrays), random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    name = random.choice(list(files))
    array, choice = arrays[name.removesuffix(".npy")], random.randrange(12)
    raw = files[name][-array.nbytes :]
    if choice == 0:
        files[name] = header(random.choice(HEADERS), random.choice((1, 2, 3, 9))) + raw
    elif choice <= 2:
        descr = random.choice(DTYPES) if random.random() < 0.5 else f"'{array.dtype.str}'"
        shape = random.choice(SHAPES) if random.random() < 0.5 else str(array.shape)
        order = random.choice((True, False, False, 1, "'x'", None))
        files[name] = header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}") + raw
    elif choice == 3:
        files[name] = header("{", random.choice((1, 2)), random.choice((0, 1, 60_000, 2**16 - 1))) + raw
    elif choice == 4:
        files[name] = mutated(files[name], random)
    elif choice == 5:  # bytes after an array: its checksum is met at the end of the member only
        files[name] += bytes(random.choice((1, 100)))
    elif choice <= 8:
        return random.choice(bombs())
    elif choice == 9:
        files[random.choice(("../escaped.npy", "/tmp/escaped.npy", f"x/{name}", f"{name}.npy"))] = files.pop(name)
    elif choice == 10:
        twice = zipped(files, method)
        file = io.BytesIO(twice)
        with zipfile.ZipFile(file, "a", method) as archive:
            archive.writestr(zipfile.ZipInfo(name), mutated(files[name], random), method)
        return file.getvalue()
    made = zipped(files, method)
    return _directory(made, random) if choice == 11 else made


def _directory(data: bytes, random: Random) -> bytes:
    """Change one field of one entry of the directory: flags, method, checksum, sizes, lengths of names, place."""
    changed = bytearray(data)
    entries = [place for place in range(len(data) - 46) if data[place : place + 4] == b"PK\1\2"]
    entry = random.choice(entries) if random.random() < 0.8 else data.rindex(b"PK\5\6")
    offset, size = random.choice(
        ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4), (12, 4), (4, 2))
    )
    count = struct.pack("<Q", random.choice((*COUNTS, random.randrange(1 << 32))) % 2**64)[:size]
    changed[entry + offset : entry + offset + size] = count
    return bytes(changed)[: len(data)]


def true_size(data: bytes) -> int:
    return max(len(data), TRUE_SIZE)


def check(data: bytes, folder: Path) -> bool:
    path = folder / "data.npz"
    path.write_bytes(data)
    try:
        dataset = load_release(RELEASE, path)
    except UserError as error:
        one_line(error)
        return False
    assert_same(dataset, *expected(data))
    return True


def expected(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of a file that was accepted, read whole and in another way. Raises AssertionError
    where it should not have been."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            wanted = SPLIT if set(names) >= {f"{key}.npy" for key in SPLIT} else WHOLE
            assert all(names.count(f"{key}.npy") == 1 for key in wanted), "a member is there twice"
            arrays = {key: _array(archive.read(f"{key}.npy")) for key in wanted}
    except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise AssertionError(f"accepted, though another reader says: {error!r}") from error
    if wanted is WHOLE:
        return arrays["images"], arrays["labels"]
    images, labels = (np.concatenate([arrays[f"train_{key}"], arrays[f"test_{key}"]]) for key in ("images", "labels"))
    return images, labels


def _array(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    array = np.lib.format.read_array(file, allow_pickle=False)
    assert not file.read(), "bytes after an array"
    return array
