"""TensorFlow's record files: a folder with `train.tfrecord`, `test.tfrecord` and perhaps `val.tfrecord`, a record an
image, and `dataset.json` with what records have no place for. Written and read without TensorFlow.

A record is a length (8 bytes, little endian), its masked CRC-32C, that many bytes, and theirs. These are a
`tf.train.Example` in the wire format of Protocol Buffers, of two features: `image`, bytes of uint8 `[H, W, 3]`, and
`label`, an int64, -1 for an unlabeled image. In TensorFlow:

    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    example = tf.io.parse_single_example(record, features)
    image = tf.reshape(tf.io.decode_raw(example["image"], tf.uint8), [32, 32, 3])

Folders of other programs, without `dataset.json`, are read too if their images are square. Nothing that a file claims
is believed before it is checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fastcifar.data.archives import damage
from fastcifar.data.converted import converted
from fastcifar.data.crc32c import crc32c
from fastcifar.data.dataset import MOST_CLASSES, Dataset, Split, channel_statistics, fingerprint, given_colors, numbered
from fastcifar.data.example import decode, encode
from fastcifar.errors import UserError
from fastcifar.output import is_regular, open_at_once, read_json
from fastcifar.recipes.declare import fits, plain

ENDING = ".tfrecord"
FACTS = "dataset.json"
"""The file of a set's classes, mean, deviation, shape of images, and of the images in each split."""
SPLITS = ("train", "test", "val")
_ENDINGS = (ENDING, ".tfrecords", ".tfrec")
_AT_ONCE = 1 << 24
"""Bytes of records that are written, or read, at once."""
_LARGEST = 1 << 27
"""Bytes that a record may have: an image of 6,500 x 6,500 pixels."""
_MASK = 0xA282EAD8
_FRAME = 16
"""Bytes of a record beside its Example."""


def write_records(path: Path, split: Split) -> None:
    """Write the images and labels of a split to a file."""
    every = split.images
    at_once = max(1, _AT_ONCE // math.prod(every.shape[1:]))
    with path.open("wb") as file:
        for start in range(0, len(split), at_once):
            images = every[start : start + at_once].numpy()
            labels = split.labels[start : start + at_once].tolist()
            examples = [encode(image.tobytes(), label) for image, label in zip(images, labels, strict=True)]
            lengths = [len(example).to_bytes(8, "little") for example in examples]
            for parts in zip(lengths, _masked(lengths), examples, _masked(examples), strict=True):
                file.writelines(parts)


def facts_of(dataset: Dataset) -> dict[str, Any]:
    """Return what `FACTS` holds of a dataset."""
    splits = {name: split for name in SPLITS if (split := getattr(dataset, name)) is not None and len(split)}
    return {
        "classes": list(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "image_shape": list(dataset.test.images.shape[1:]),
        "images": {name: len(split) for name, split in splits.items()},
        "sha256": fingerprint(*splits.values()),
    }


def load_tfrecord(path: Path) -> Dataset:
    """Load the set in a folder, or in that of `path`, a file of it, to the CPU. Its name is the path. What takes long
    to read is kept in the user's cache until a file changes.

    Raises UserError for a folder that holds none, and for damaged files.
    """
    folder = path if path.is_dir() else path.parent
    places = [(name, folder / f"{name}{ending}") for name in SPLITS for ending in reversed(_ENDINGS)]
    files = {name: file for name, file in places if file.is_file()}  # with the first of the endings, if with several
    facts_file = folder / FACTS
    facts = _facts(facts_file) if facts_file.is_file() else {}
    if facts and (lack := [name for name in facts["images"] if name not in files]):
        raise UserError(f"{folder} lacks {lack[0]}{ENDING}, which its {FACTS} names; allowed: all of its files")
    files = {name: files[name] for name in facts.get("images", files)}
    if "test" not in files or (path.is_file() and path not in files.values()):
        allowed = f"a folder with train{ENDING} and test{ENDING}, perhaps val{ENDING}"
        raise UserError(f"{path} is no set of record files; allowed: {allowed}, or one of these")
    paths = [*files.values(), *([facts_file] if facts else [])]
    return converted(str(path), paths, lambda: _read(path, folder, files, facts))


def _read(path: Path, folder: Path, files: dict[str, Path], facts: dict[str, Any]) -> Dataset:
    """Return the set at `path` in these files of a folder, of which `facts` are said."""
    read = {name: read_records(file, facts.get("image_shape")) for name, file in files.items()}
    for name, count in facts.get("images", {}).items():
        if len(read[name]) != count:
            raise UserError(f"{files[name]} holds {len(read[name]):,} images; allowed: {count:,}, as {FACTS} says")
    test, val = read["test"], read.get("val")
    train = read.get("train") or Split(test.images[:0], test.labels[:0])
    sha256 = fingerprint(*[split for split in (train, test, val) if split is not None])
    how = "the CRC-32C of every record"
    if facts and sha256 != facts["sha256"]:
        raise UserError(f"{folder} is damaged: its images and labels are not those that {FACTS} was written with")
    if facts:
        how, classes, mean, std = f"{how} and the sha256 in {FACTS}", facts["classes"], facts["mean"], facts["std"]
    else:
        last = max(split.label_range[1] for split in read.values())
        classes = numbered(last, f"the labels in {folder}")
        mean, std = channel_statistics(read.get("train", test).images)
    return Dataset(str(path), train, test, classes, mean, std, sha256, str(folder), val=val, verified=how)


def read_records(path: Path, shape: tuple[int, int, int] | None = None) -> Split:
    """Read the images and labels of a file, every checksum of which is verified.

    shape: that of an image, [H, W, 3]; None: square, as large as the first one.

    Raises UserError for a damaged file, for one without images, and where the images are of several sizes.
    """
    with damage(str(path)), open_at_once(path) as file:
        if not is_regular(file):
            raise ValueError("it is a pipe or a device")
        sizes = _sizes(file)
        if not len(sizes):
            raise UserError(f"{path} holds no records; allowed: one for each image")
        images, labels, done = np.empty((0, 0), np.uint8), np.empty(len(sizes), np.int64), 0
        for records in _pieces(file, sizes):
            for record in records:
                with damage(f"{path}: record {done} (from 0)"):
                    image, label = decode(record, images.shape[-1])
                    if not -1 <= label < MOST_CLASSES:
                        raise ValueError(f"its label is {label}; allowed: -1 to {MOST_CLASSES - 1:,}")
                labels[done] = label
                if not done:
                    shape = shape or _square(len(image))
                    if sizes.min() < math.prod(shape):
                        raise ValueError(f"it has a record of {sizes.min():,} bytes, the first image of {len(image):,}")
                    images = np.empty((len(sizes), math.prod(shape)), np.uint8)
                if len(image) != images.shape[1]:
                    raise ValueError(f"image {done} (from 0) is {len(image):,} bytes; allowed: {images.shape[1]:,}")
                images[done] = np.frombuffer(image, np.uint8)
                done += 1
        assert shape is not None
        return Split(torch.from_numpy(images.reshape(-1, *shape)), torch.from_numpy(labels))


def _facts(path: Path) -> dict[str, Any]:
    """Read `FACTS`. Raises UserError unless it has what `facts_of` gives."""
    facts: dict[str, Any] = {name: plain(value) for name, value in read_json(path).items()}
    numbers, images = tuple[float, float, float], facts.get("images", {})
    hints = {"classes": tuple[str, ...], "mean": numbers, "std": numbers, "image_shape": tuple[int, int, int]}
    is_whole = all(fits(facts.get(name), hint) for name, hint in {**hints, "sha256": str, "images": dict}.items())
    is_whole = is_whole and {"test"} <= {*images} <= {*SPLITS} and all(fits(each, int) for each in images.values())
    if not (is_whole and facts["image_shape"][2] == 3 and min(facts["image_shape"]) > 0):
        raise UserError(f"{path} is damaged; allowed: as fastcifar data convert wrote it")
    for name in ("mean", "std"):
        given_colors(name, f"{name} in {path}", facts[name])
    return facts


def _square(size: int) -> tuple[int, int, int]:
    side = math.isqrt(size // 3)
    if not side or 3 * side * side != size:
        raise ValueError(f"its first image is {size:,} bytes, no square of uint8 [H, H, 3]; allowed: with a {FACTS}")
    return side, side, 3


def _sizes(file: BinaryIO) -> np.ndarray:
    """Return the bytes of each record's Example: int64 `[records]`, with which the file ends where it should."""
    sizes, place, end = [], 0, os.fstat(file.fileno()).st_size
    while place < end:
        file.seek(place)
        header = file.read(12)
        size = int.from_bytes(header[:8], "little")
        if len(header) < 12 or size > end - place - _FRAME:
            raise EOFError(f"it ends within record {len(sizes)} (from 0)")
        if not 4 <= size <= _LARGEST:
            raise ValueError(f"record {len(sizes)} (from 0) is {size:,} bytes; allowed: 4 to {_LARGEST:,}")
        sizes.append(size)
        place += size + _FRAME
    file.seek(0)
    return np.array(sizes, np.int64)


def _pieces(file: BinaryIO, sizes: np.ndarray) -> Iterator[list[memoryview]]:
    """Give the Examples of a file, some at once. Raises ValueError for a wrong checksum."""
    done = 0
    while done < len(sizes):
        some = sizes[done : done + _AT_ONCE // int(sizes[done]) + 1]
        # Checksums take the memory of texts that are all as long as the longest.
        taken = np.maximum.accumulate(some) * np.arange(1, 1 + len(some))
        some = some[: max(1, int(np.searchsorted(taken, _AT_ONCE)))]
        content = memoryview(file.read(int(some.sum()) + _FRAME * len(some)))
        ends = np.cumsum(some + _FRAME).tolist()
        frames = [content[end - size - _FRAME : end] for size, end in zip(some.tolist(), ends, strict=True)]
        for what, texts, sums in (
            ("length", [each[:8] for each in frames], [each[8:12] for each in frames]),
            ("bytes", [each[12:-4] for each in frames], [each[-4:] for each in frames]),
        ):
            for number, (wanted, found) in enumerate(zip(_masked(texts), sums, strict=True)):
                if wanted != found:
                    raise ValueError(f"the checksum of the {what} of record {done + number} (from 0) is wrong")
        yield [each[12:-4] for each in frames]
        done += len(some)


def _masked(texts: list[bytes] | list[memoryview]) -> list[bytes]:
    """Return the checksums as they stand in a file, turned and moved, so that a text may hold one of its own."""
    sums = crc32c(texts)
    return [each.tobytes() for each in (((sums >> 15) | (sums << 17)) + np.uint32(_MASK)).astype("<u4")]
