"""Fuzz target: files of torch.save, of the zip format and the older one."""

import contextlib
import io
import itertools
import pickletools
import random
import re
import zipfile
from pathlib import Path

import torch

from tests.fuzz.weights import load
from tests.training.weight_files import Net, older

NAMES = ["os system", "builtins bytearray", "torch FloatTensor", "torch DoubleStorage"]
NUMBERS = [b"K\0", b"K\1", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\0"]
"""Instructions for numbers: 0, 1, the largest ones of several sizes and a negative one."""


def seeds() -> dict[str, bytes]:
    state = Net().state_dict()
    values = {"zip": state, "nested": {"epoch": 3, "state_dict": {f"net.{name}": state[name] for name in state}}}
    found = {}
    for name, value in values.items():
        for write in (torch.save, older):
            file = io.BytesIO()
            write(value, file)
            found[f"{name}, {write.__name__}"] = file.getvalue()
    return found


def check(data: bytes, folder: Path) -> bool:
    """Load a file into a network. One of the zip format, whose entries have checksums, gives the original's tensors bit
    for bit, unless its pickle was changed along with its checksum; the older one is as in `weights.check`."""
    state = load(data, folder)
    if state is not None and data[:2] == b"PK" and _pickle(data) in {_pickle(seed) for seed in seeds().values()}:
        assert all(torch.equal(state[name], tensor) for name, tensor in Net().state_dict().items())
    return state is not None


def mutate(data: bytes, random: random.Random) -> bytes:
    """Change instructions of the pickle (numbers, names, and their order), or what a zip file's directory says."""
    if data[:2] == b"PK" and random.randrange(3) == 0:
        return _redirected(data, random)
    pickle = _pickle(data)
    if pickle is None:
        return data
    changed = _changed(pickle, random)
    if data[:2] != b"PK":
        return data.replace(pickle, changed, 1)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(file, "w") as again:
        for info in archive.infolist():
            content = archive.read(info)
            again.writestr(info.filename, changed if content == pickle else content)
    return file.getvalue()


def _redirected(data: bytes, random: random.Random) -> bytes:
    """Change a field of an entry of a zip file's directory: flags, sizes, attributes, its place or its name."""
    changed = bytearray(data)
    entries = [found.start() for found in re.finditer(b"PK\1\2", data) if found.start() + 47 <= len(data)]
    for entry in random.sample(entries, min(len(entries), random.randint(1, 2))):
        changed[entry + random.randint(4, 46)] ^= 1 << random.randrange(8)
        if random.randrange(2):
            changed[entry + 38] |= 0x10  # a folder
    return bytes(changed)


def _pickle(data: bytes) -> bytes | None:
    """Return the pickle that describes the tensors; None where it is damaged."""
    with contextlib.suppress(Exception):
        if data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        file = io.BytesIO(data)
        for _ in range(3):
            list(pickletools.genops(file))
        begin = file.tell()
        list(pickletools.genops(file))
        return data[begin : file.tell()]
    return None


def _changed(pickle: bytes, random: random.Random) -> bytes:
    found = list(pickletools.genops(pickle))
    places = [place for _, _, place in found if place is not None] + [len(pickle)]
    parts = [pickle[start:end] for start, end in itertools.pairwise(places)]
    for _ in range(random.randint(1, 4)):
        place, other = (random.randrange(1, len(parts)) for _ in range(2))
        numbers = [at for at, (instruction, _, _) in enumerate(found) if instruction.name.startswith("BININT")]
        names = [at for at, (instruction, _, _) in enumerate(found) if instruction.name == "GLOBAL"]
        kind = random.randrange(5)
        if kind == 0:
            parts[random.choice(numbers)] = random.choice(NUMBERS)
        elif kind == 1:
            parts[random.choice(names)] = b"c" + random.choice(NAMES).replace(" ", "\n").encode() + b"\n"
        elif kind == 2:
            parts[place], parts[other] = parts[other], parts[place]
        elif kind == 3:
            parts[place] *= 2
        else:
            parts[place] = b""
    return b"".join(parts)
