"""TensorFlow's record files: what is written is what Protocol Buffers' own library reads, and the other way round; what
is damaged is refused."""

import dataclasses
import json
import struct

import numpy as np
import pytest
import torch

from fastcifar.data import Dataset
from fastcifar.data.crc32c import crc32c
from fastcifar.data.dataset import fingerprint
from fastcifar.data.example import encode
from fastcifar.data.tfrecord import FACTS, _masked, facts_of, load_tfrecord, read_records, write_records
from fastcifar.errors import UserError

RANDOM = np.random.default_rng(5)
KNOWN = {
    bytes(32): 0x8A9136AA,  # RFC 3720, B.4
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    b"123456789": 0xE3069283,
}


def one_by_one(text):
    """The CRC-32C of a text, bit by bit."""
    found = 0xFFFFFFFF
    for byte in text:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ 0x82F63B78 * (found & 1)
    return found ^ 0xFFFFFFFF


def masked(text):
    found = one_by_one(text)
    return struct.pack("<I", ((found >> 15 | found << 17) + 0xA282EAD8) % 2**32)


def framed(*examples, masked=masked):
    """A file of these records."""
    made = b""
    for example in examples:
        length = struct.pack("<Q", len(example))
        made += length + masked(length) + example + masked(example)
    return made


def unpacked(record, packed, alone):
    """The record with the last feature's integers one by one: each length around them is less by one."""
    place = record.index(packed)
    label = record.rindex(b"\x0a\x05label", 0, place)
    made = record[:place] + alone + record[place + len(packed) :]
    for length in (place - 1, label - 1):  # of the Feature, and of the entry around it
        made = made[:length] + bytes([made[length] - 1]) + made[length + 1 :]
    return made[:1] + bytes([made[1] - 1]) + made[2:]


def small(height=4, width=4, train=6, labels=3, val=None):
    def images(count):
        return RANDOM.integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    x_val = None if val is None else images(val)
    made = Dataset.from_arrays(images(max(1, train)), np.arange(max(1, train)) % labels, images(5), None, x_val=x_val)
    return made if train else without_training(made)


def without_training(dataset):
    train = dataset.train.subset(torch.arange(0))
    return dataclasses.replace(dataset, train=train, sha256=fingerprint(train, dataset.test))


def write(folder, dataset):
    folder.mkdir()
    facts = facts_of(dataset)
    for name in facts["images"]:
        write_records(folder / f"{name}.tfrecord", getattr(dataset, name))
    (folder / FACTS).write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def example():
    """The message `tf.train.Example` of the library of Protocol Buffers."""
    pytest.importorskip("google.protobuf")
    from tests.data.example_message import Example

    return Example


def test_checksums_are_the_published_ones_and_those_taken_bit_by_bit():
    assert crc32c(list(KNOWN)).tolist() == list(KNOWN.values())
    texts = [RANDOM.bytes(size) for size in (4, 5, 7, 8, 9, 31, 2047, 2048, 2049, 6000, 4)]
    assert crc32c(texts).tolist() == [one_by_one(text) for text in texts]


@pytest.mark.parametrize("label", [0, 127, 128, 300, -1])
def test_records_are_what_other_programs_read(tmp_path, example, label):
    split = small().test
    split.labels[:] = label
    write_records(tmp_path / "a.tfrecord", split)
    content, place, found = (tmp_path / "a.tfrecord").read_bytes(), 0, []
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        record = content[place + 12 : place + 12 + size]
        assert content[place : place + size + 16] == framed(record)
        features = example.FromString(record).features.feature
        assert sorted(features) == ["image", "label"] and list(features["label"].int64_list.value) == [label]
        found += features["image"].bytes_list.value
        place += size + 16
    assert found == [image.numpy().tobytes() for image in split.images]


def test_records_of_other_programs_are_read(tmp_path, example):
    """With more features, in another order, and without a label."""
    images = [RANDOM.bytes(48) for _ in range(3)]
    records = []
    for number, image in enumerate(images):
        record = example()
        record.features.feature["zoo"].float_list.value.extend([1.5, 2])
        if number:
            record.features.feature["label"].int64_list.value.append(7 * number)
        record.features.feature["image"].bytes_list.value.append(image)
        records.append(record.SerializeToString())
    packed, alone = b"\x1a\x03\x0a\x01\x0e", b"\x1a\x02\x08\x0e"  # integers as version 2 wrote them by default
    assert packed in records[2] and example.FromString(unpacked(records[2], packed, alone)) == record
    records[2] = unpacked(records[2], packed, alone)
    (tmp_path / "test.tfrec").write_bytes(framed(*records))
    dataset = load_tfrecord(tmp_path)
    assert [image.numpy().tobytes() for image in dataset.test.images] == images
    assert dataset.test.labels.tolist() == [-1, 7, 14] and len(dataset.classes) == 15 and not len(dataset.train)
    assert load_tfrecord(tmp_path / "test.tfrec").sha256 == dataset.sha256


@pytest.mark.parametrize("form", [{}, {"height": 2, "width": 7}, {"val": 2}, {"train": 0}, {"labels": 1}])
def test_a_set_is_read_as_it_was_written(tmp_path, form):
    dataset = small(**form)
    read = load_tfrecord(write(tmp_path / "set", dataset))
    for name in ("train", "test", "val"):
        wanted, found = getattr(dataset, name), getattr(read, name)
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert torch.equal(found.images, wanted.images) and torch.equal(found.labels, wanted.labels)
    assert (read.classes, read.mean, read.std, read.sha256) == (
        dataset.classes,
        dataset.mean,
        dataset.std,
        dataset.sha256,
    )


def test_a_long_record_among_short_ones_takes_no_more_memory(tmp_path, monkeypatch):
    """Checksums are taken of texts padded to the longest: never many of them beside a long one."""
    rows = []
    monkeypatch.setattr("fastcifar.data.tfrecord.crc32c", lambda texts: rows.append(texts) or crc32c(texts))
    short, long = encode(bytes(48), 0), encode(RANDOM.bytes(3 << 20), 1)
    (tmp_path / "a").write_bytes(framed(*[short] * 30, long, *[short] * 30, masked=lambda text: _masked([text])[0]))
    with pytest.raises(UserError, match=r"image 30 \(from 0\) is 3,145,728 bytes; allowed: 48"):
        read_records(tmp_path / "a")
    assert max(len(texts) * max(map(len, texts)) for texts in rows) <= 1 << 24


def replaced(content, place, byte):
    return content[:place] + bytes([content[place] ^ byte]) + content[place + 1 :]


DAMAGE = {
    "cut": (lambda content, _: content[:-1], "it ends within record 5"),
    "cut in a header": (lambda content, _: content[:7], "it ends within record 0"),
    "a huge length": (lambda content, _: struct.pack("<Q", 2**63) + content[8:], "it ends within record 0"),
    "a short length": (lambda content, _: struct.pack("<Q", 2) + content[8:], "allowed: 4 to"),
    "the sum of a length": (lambda content, _: replaced(content, 8, 1), "checksum of the length of record 0"),
    "a pixel": (lambda content, _: replaced(content, 50, 1), "checksum of the bytes of record 0"),
    "the sum of bytes": (lambda content, _: replaced(content, len(content) - 1, 1), "the bytes of record 5"),
    "no Example": (lambda _, __: framed(b"\xff" * 9), "record 0"),
    "no image": (lambda _, example: framed(example(7)), "it has the features ['label']"),
    "floats": (lambda _, example: framed(example(1, [0.5] * 48)), "a list of floats"),
    "two labels": (lambda _, example: framed(example([1, 2], bytes(48))), "one integer"),
    "a label beyond reason": (lambda _, example: framed(example(2**62, bytes(48))), "its label is"),
    "a label below -1": (lambda _, example: framed(example(-2, bytes(48))), "its label is -2"),
    "no square": (lambda _, example: framed(example(1, bytes(24))), "no square"),
    "two sizes": (lambda _, example: framed(example(1, bytes(48)), example(1, bytes(108))), "image 1"),
    "a smaller one": (lambda _, example: framed(example(1, bytes(108)), example(1, bytes(12))), "record of"),
    "nothing": (lambda _, __: b"", "holds no records"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, example, kind):
    def record(label, image=None):
        made = example()
        made.features.feature["label"].int64_list.value.extend(label if isinstance(label, list) else [label])
        if isinstance(image, bytes):
            made.features.feature["image"].bytes_list.value.append(image)
        elif image:
            made.features.feature["image"].float_list.value.extend(image)
        return made.SerializeToString()

    path = tmp_path / "a.tfrecord"
    write_records(path, small().train)
    change, said = DAMAGE[kind]
    path.write_bytes(change(path.read_bytes(), record))
    with pytest.raises(UserError) as raised:
        read_records(path)
    assert said in str(raised.value) and str(path) in str(raised.value)


FACTS_CHANGED = {
    "classes": (3, "dataset.json is damaged"),
    "mean": ([1, 2], "dataset.json is damaged"),
    "std": ([1, 2, 0], "std in .*dataset.json is"),
    "image_shape": ([10**9, 10**9, 3], "it has a record of"),
    "images": ({"test": 4}, "holds 5 images; allowed: 4"),
    "sha256": ("0" * 64, "are not those that dataset.json was written with"),
}


@pytest.mark.parametrize("name", FACTS_CHANGED)
def test_facts_that_do_not_fit_are_refused(tmp_path, name):
    folder = write(tmp_path / "set", small())
    facts = json.loads((folder / FACTS).read_text())
    value, said = FACTS_CHANGED[name]
    (folder / FACTS).write_text(json.dumps({**facts, name: value}))
    with pytest.raises(UserError, match=said):
        load_tfrecord(folder)


@pytest.mark.parametrize(
    ("remove", "said"), [("train.tfrecord", "lacks train.tfrecord"), ("*", "is no set of record files")]
)
def test_a_folder_that_lacks_a_file_is_refused(tmp_path, remove, said):
    folder = write(tmp_path / "set", small())
    for path in folder.glob(remove):
        path.unlink()
    with pytest.raises(UserError, match=said):
        load_tfrecord(folder)
