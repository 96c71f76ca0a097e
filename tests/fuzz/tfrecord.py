"""A file of TensorFlow's records: frames with checksums, and in each a message of Protocol Buffers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from fastcifar.data.example import encode
from fastcifar.data.tfrecord import _masked, load_tfrecord
from fastcifar.errors import UserError
from tests.fuzz.engine import one_line
from tests.fuzz.mutations import COUNTS, mutated

PIXELS = [Random(number).randbytes(48) for number in range(6)]
EXAMPLES = [encode(pixels, label) for pixels, label in zip(PIXELS, (0, 1, 2, 130, -1, 1), strict=True)]

CASES = 200


def framed(examples: list[bytes]) -> bytes:
    lengths = [struct.pack("<Q", len(example)) for example in examples]
    sums = [*_masked(lengths), *_masked([example.ljust(4, b"\0") for example in examples])]
    frames = zip(lengths, sums, examples, sums[len(examples) :], strict=False)
    return b"".join(part for frame in frames for part in frame)


def seeds() -> dict[str, bytes]:
    return {"labels": framed(EXAMPLES), "one": framed(EXAMPLES[:1]), "twice": framed(EXAMPLES * 2)}


def mutate(data: bytes, random: Random) -> bytes:
    """Change an Example and its frame with it, or what a frame claims."""
    examples = list(EXAMPLES)
    place, choice = random.randrange(len(examples)), random.randrange(4)
    if choice == 0:
        examples[place] = mutated(examples[place], random)
    elif choice == 1:
        examples[place] = encode(
            random.randbytes(random.choice((0, 3, 47, 48, 49, 108, 100_000))), random.choice(COUNTS)
        )
    elif choice == 2:  # a byte among those that say how long what follows is
        changed = bytearray(examples[place])
        heads = [each for each in range(len(changed)) if not 20 <= each < 60]
        changed[random.choice(heads)] = random.choice((0, 1, 8, 10, 18, 26, 127, 128, 255, random.randrange(256)))
        examples[place] = bytes(changed)
    else:
        content = framed(examples)
        at = random.randrange(len(examples)) * (len(examples[0]) + 16)
        length = struct.pack("<Q", random.choice(COUNTS) % 2**64)
        return content[:at] + length + _masked([length])[0] + content[at + 12 :]
    return framed(examples)


def check(data: bytes, folder: Path) -> bool:
    (folder / "test.tfrecord").write_bytes(data)
    try:
        dataset = load_tfrecord(folder)
    except UserError as error:
        one_line(error)
        return False
    try:
        from tests.data.example_message import Example
    except ImportError:  # without the library of Protocol Buffers there is no other reader
        return True
    found = zip(dataset.test.images, dataset.test.labels.tolist(), strict=True)
    wanted = list(_records(data, Example))
    assert [(image.numpy().tobytes(), label) for image, label in found] == wanted, "wrong images or labels"
    return True


def _records(data: bytes, example: Any) -> Iterator[tuple[bytes, int]]:
    """Give the image and the label of each record as the library of Protocol Buffers reads them."""
    place = 0
    while place < len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        content = data[place + 12 : place + 12 + size]
        assert _masked([content])[0] == data[place + 12 + size : place + 16 + size], "a wrong checksum"
        place += size + 16
        features = example.FromString(content).features.feature  # raises an error where it should have been refused
        labels = features["label"].int64_list.value if "label" in features else []
        yield features["image"].bytes_list.value[0], labels[0] if labels else -1
