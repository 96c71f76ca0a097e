"""Files of weights from anywhere: which they are, and what is none. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastcifar.errors import UserError
from fastcifar.output import is_regular, open_at_once, run_files, user_path

MOST_HEADER = 4 << 20
"""Bytes that the header of a .safetensors file may have; its first 8 bytes say how many."""
_CHUNK = 1 << 20
TORCHVISION = "torchvision:"
"""What stands before the name of weights that torchvision publishes."""
_PUBLISHED = {"IMAGENET1K_V1": "resnet18-f37072fd.pth"}
"""The names of ResNet-18's, and their files, by which torch's hub keeps them."""
_HOME = "https://download.pytorch.org/models/"


@contextlib.contextmanager
def opened(path: Path, what: str) -> Iterator[BinaryIO]:
    """Open a file that exists to be read, and close it. Raises UserError, which calls it `what`, for devices, pipes and
    the like, which may have no end, and where it cannot be read."""
    try:
        with open_at_once(path) as file:
            if not is_regular(file):
                raise UserError(f"{what} {path} is no regular file; allowed: a file, not a folder, device or pipe")
            yield file
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror or error}") from None


def sha256_of(path: Path, what: str) -> str:
    """Return the sha256 of a file, read in pieces. Raises UserError as `opened` does."""
    digest = hashlib.sha256()
    with opened(path, what) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def published(name: str | os.PathLike[str]) -> Path:
    """Return the file of ResNet-18's weights that torchvision publishes by this name, as in torchvision:IMAGENET1K_V1:
    in the cache of torch's hub (`$TORCH_HOME`) or in fastcifar beside it, in ~/.cache on every system. Nothing is
    downloaded. Raises UserError, with its address and where to put it, where it is in neither, and for an unknown
    name."""
    file = _PUBLISHED.get(str(name).removeprefix(TORCHVISION))
    if file is None:
        known = ", ".join(f"{TORCHVISION}{each}" for each in _PUBLISHED)
        raise UserError(f"there are no weights {str(name)!r}; allowed: {known}")
    cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "$XDG_CACHE_HOME")
    hub = user_path(os.environ.get("TORCH_HOME") or cache / "torch", "$TORCH_HOME") / "hub" / "checkpoints"
    own = cache / "fastcifar"
    for folder in (hub, own):
        if (folder / file).is_file():
            return folder / file
    raise UserError(
        f"{name} is not on this machine, and nothing is downloaded unasked; allowed: download {_HOME}{file} and put it "
        f"into {hub} or {own}"
    )


def is_published(file: Path) -> bool:
    """Return True for a file with the name of one that torchvision publishes."""
    return file.name in _PUBLISHED.values()


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of weights of a saved run (see `run_files`), or that file itself. Raises UserError if there is
    none, and for a file of another kind than those that `read_weights` reads, as its first bytes tell."""
    path = published(path) if str(path).startswith(TORCHVISION) else user_path(path, "the source of weights")
    allowed = "the folder of a saved run, or a file of weights: .safetensors, or .pt, .pth or .ckpt of torch.save"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:  # a loop of links, a name too long
        raise UserError(f"cannot read the weights in {path}: {error.strerror or error}; allowed: {allowed}") from None
    if mode and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a device, a pipe or a socket; allowed: {allowed}")
    file = path if stat.S_ISREG(mode) and path.suffix != ".json" else run_files(path)[1]
    if not file.is_file():
        found = f"holds no run: {file.name} is missing" if mode else "does not exist"
        raise UserError(f"{path} {found}; allowed: {allowed}")
    with opened(file, "the weights in") as weights:
        start = weights.read(8)
    zipped, pickled = start[:4] == b"PK\3\4", start[:1] == b"\x80"
    if len(start) < 8 or not (int.from_bytes(start, "little") <= MOST_HEADER or zipped or pickled):
        what = "is empty" if not start else "holds no weights that can be read"
        raise UserError(f"{file} {what}; allowed: {allowed}")
    return file
