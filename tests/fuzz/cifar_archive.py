"""The official archives, pinned to the md5 of the input, so that what it holds is really read."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import tarfile
import zlib
from pathlib import Path
from random import Random

import numpy as np

from fastcifar.data.cifar import load_release
from fastcifar.errors import UserError
from tests.fuzz import mutations, pickled, releases
from tests.fuzz.engine import one_line
from tests.fuzz.releases import RECORD, RECORDS, RELEASE, TRUE_SIZE, assert_same, gz, members, tar

NAMES = (
    "../escaped",
    "/tmp/escaped",
    "C:\\escaped",
    "..\\escaped",
    "nul\0byte",
    "a" * 90,
    "\udcff",
    "",
    ".",
    "batch\n2",
)
TYPES = (
    *(tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    *(tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, b"Z"),
)

CASES = 100


def seeds() -> dict[str, bytes]:
    return dict(_SEEDS)


_SEEDS = {form: gz(tar(members(form))) for form in ("binary", "python")}


@functools.cache
def bombs() -> list[bytes]:
    """Return archives that are small when packed: with a long member, many members, a long extended header, and zeros
    after the end."""
    parts, extra = members("binary"), tarfile.TarInfo("extra")
    made = [tar([*parts, *[(extra, b"")] * 20_000])]
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        extra.type, extra.size = kind, 2**26
        made.append(tar([(extra, bytes(2**26)), *parts]))
    return [gz(content) for content in (*made, tar(parts) + bytes(2**26))]


def mutate(data: bytes, random: Random) -> bytes:
    """Change members: their names, types, sizes and number; the bytes of the tar file; what follows it."""
    form = "binary" if data == _SEEDS["binary"] else "python"
    parts, choice = members(form), random.randrange(12)
    place = random.randrange(1, len(parts))
    member, content = parts[place]
    if choice == 0:
        member.name = random.choice(NAMES)
    elif choice == 1:
        member.type, member.linkname = random.choice(TYPES), random.choice((parts[-1][0].name, *NAMES))
    elif choice == 2:
        member.size = random.choice((0, 1, 511, 512, 513, 2**20, 2**31, 2**33 - 1, member.size - 1, member.size + 1))
    elif choice == 3:  # a second member of the same name
        other = content if random.random() < 0.5 else parts[1][1]
        parts.insert(random.randrange(len(parts) + 1), (member, other))
    elif choice == 4:
        del parts[place]
    elif choice == 5:
        random.shuffle(parts)
    elif choice == 6:  # what comes before a member and changes its name or size, or claims to be long
        header = tarfile.TarInfo("header")
        header.type = random.choice((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME))
        records = random.choice((b"path=../escaped", b"size=1", b"GNU.sparse.major=1", b"mtime=x", b"1" * 3000))
        text = b"%d %s\n" % (len(records) + len(str(len(records) + 4)) + 2, records)
        header.size = len(text)
        parts.insert(place, (header, text))
    elif choice == 7:
        return random.choice(bombs())
    elif choice == 8:
        parts[place] = member, mutations.mutated(content, random)
    elif choice == 9:
        changed = pickled.mutate(content, random) if form == "python" else releases.binary_batch(place - 1)[::-1]
        parts[place], member.size = (member, changed), len(changed)
    elif choice == 10:
        return gz(mutations.mutated(tar(parts), random))
    else:
        return gz(tar(parts) + random.choice((b"after", bytes(2**20), gz(b"more")))) + random.choice((b"", b"after"))
    return gz(tar(parts, random.choice((tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))))


def true_size(data: bytes) -> int:
    return max(len(data), TRUE_SIZE)


def check(data: bytes, folder: Path) -> bool:
    read = False
    digest = hashlib.md5(data).hexdigest()
    for form, archive in (("binary", RELEASE.binary), ("python", RELEASE.python)):
        path = folder / archive.filename
        path.write_bytes(data)
        release = dataclasses.replace(RELEASE, **{form: dataclasses.replace(archive, md5=digest, size=TRUE_SIZE)})
        try:
            dataset = load_release(release, path)
        except UserError as error:
            one_line(error)
        else:
            assert_same(dataset, *expected(data, form))
            read = True
        path.unlink()
    return read


def expected(data: bytes, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of an archive that was accepted, read in another way. Raises AssertionError where it
    should not have been."""
    try:
        whole = gzip.decompress(data)  # to its end, with its checksum
        with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as archive:
            found = archive.getmembers()
            end = archive.offset
            names = [member.name for member in found]
            wanted = RELEASE.binary if form == "binary" else RELEASE.python
            images, labels = [], []
            for name in (f"{wanted.folder}/{batch}" for batch in wanted.batches):
                assert names.count(name) == 1, f"{name} is there {names.count(name)} times"
                member = found[names.index(name)]
                assert member.isfile() and not member.issparse(), f"{name} is no plain file"
                content = archive.extractfile(member).read()  # pyright: ignore
                if form == "binary":
                    records = np.frombuffer(content, dtype=np.uint8).reshape(RECORDS, RECORD)
                    labels.append(records[:, 0].astype(np.int64))
                    images.append(records[:, 1:])
                else:
                    batch_labels, planes = pickled.expected(content)
                    labels.append(batch_labels)
                    images.append(planes)
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise AssertionError(f"accepted, though another reader says: {error!r}") from error
    assert not whole[end:].strip(b"\0"), "bytes after the end"
    return np.concatenate(images).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.concatenate(labels)
