"""The checksums beside an unpacked archive."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastcifar.data.cache import SUMS, is_verified
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line

FILES = {"one.bin": b"one", "two.bin": b"two"}
FINGERPRINT = hashlib.sha256(b"the images").hexdigest()
LINES = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in FILES.items())
FIRST = "# made from the official set.tar.gz; sha256 of the images and labels: "


def seeds() -> dict[str, bytes]:
    outside = LINES.replace("one.bin", "../outside/kept")
    texts = {"whole": FINGERPRINT, "other": "0" * 64}
    return {
        **{name: f"{FIRST}{sha256}\n{LINES}".encode() for name, sha256 in texts.items()},
        "outside": f"{FIRST}{'0' * 64}\n{outside}".encode(),
        "another's": LINES.encode(),
    }


def check(data: bytes, folder: Path) -> bool | None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / SUMS).write_bytes(data)
    try:
        found = is_verified(folder, FINGERPRINT)
    except UserError as error:
        one_line(error)
        return None
    named = data.splitlines()[0].endswith(FINGERPRINT.encode()) if data else False
    assert found == named or not found, "verified by checksums that do not name it"
    return found or None
