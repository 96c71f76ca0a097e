"""Memory and lines that a small file may ask for are bounded, whichever loader reads it."""

import dataclasses
import json
import resource
import struct
import warnings
import zlib

import numpy as np
import pytest

from fastcifar.data import Dataset, load_dataset
from fastcifar.data.example import encode
from fastcifar.data.picture import pixels
from fastcifar.data.tfrecord import _masked
from fastcifar.data.write import convert
from fastcifar.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def npz(path, labels):
    np.savez(path / "a.npz", train_images=IMAGES, train_labels=labels, test_images=IMAGES, test_labels=labels)
    return load_dataset(str(path / "a.npz"))


def hdf5(path, labels):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "a.h5", "w") as file:
        for name, values in {"images-train": IMAGES, "labels-train": labels, "images-test": IMAGES}.items():
            file[name] = values
    return load_dataset(str(path / "a.h5"))


def tfrecord(path, labels):
    for split in ("train", "test"):
        examples = [encode(image.tobytes(), int(label)) for image, label in zip(IMAGES, labels, strict=True)]
        lengths = [len(each).to_bytes(8, "little") for each in examples]
        parts = zip(lengths, _masked(lengths), examples, _masked(examples), strict=True)
        (path / f"{split}.tfrecord").write_bytes(b"".join(map(b"".join, parts)))
    return load_dataset(str(path))


def arrays(path, labels):
    return Dataset.from_arrays(IMAGES, labels, IMAGES, labels)


@pytest.mark.parametrize("load", [npz, hdf5, tfrecord, arrays])
def test_one_label_makes_no_list_without_end(load, tmp_path):
    assert len(load(tmp_path, np.array([0, 1, 2, 99_999])).classes) == 100_000
    for label in (100_000, 50_000_000, 2**62):
        with pytest.raises(UserError, match=rf"(are up to|its label is) {label}; allowed: (up to 99999|-1 to 99,999)$"):
            load(tmp_path, np.array([0, 1, 2, label]))


def test_a_chunk_of_hdf5_is_not_allocated_for_a_few_images(tmp_path):
    h5py = pytest.importorskip("h5py")
    for images, refused in ((100_000, True), (80_000, False)):  # 307 MB and 246 MB
        with h5py.File(tmp_path / f"{images}.h5", "w") as file:
            how = {"maxshape": (None, 32, 32, 3), "chunks": (images, 32, 32, 3), "compression": "gzip"}
            file.create_dataset("images-test", (4, 32, 32, 3), np.uint8, **how)  # no image is written: no chunk either
            with pytest.raises(UserError) as caught:
                load_dataset(str(tmp_path / f"{images}.h5"))
        assert ("chunks of 307,200,000 bytes" in str(caught.value)) == refused


def test_a_thin_picture_is_resized_in_no_more_memory_than_it_has():
    image = pytest.importorskip("PIL.Image")
    stripes = np.random.default_rng(1).integers(0, 256, (300_000, 1, 3), dtype=np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for turned in (stripes, stripes.transpose(1, 0, 2)):
        found = pixels(image.fromarray(turned), "a", 32)
        found = found if turned is stripes else found.transpose(1, 0, 2)
        middle = stripes[149_998:150_002]  # by hand: half of each of the two pixels beside the middle
        places = 1.5 + (np.arange(32) + 0.5 - 16) / 32
        low = np.floor(places).astype(int)
        share = (places - low)[:, None]
        wanted = middle[low, 0] * (1 - share) + middle[low + 1, 0] * share
        assert found.shape == (32, 32, 3) and np.abs(found - wanted[:, None]).max() <= 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_pictures_of_many_pixels_are_refused_in_one_line(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number, label in enumerate("aabbaabb"):
        path = tmp_path / "set" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(IMAGES[0]).save(path)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(9)),
        b"IEND": b"",
    }
    sums = {kind: struct.pack(">I", zlib.crc32(kind + content)) for kind, content in parts.items()}
    pieces = [struct.pack(">I", len(content)) + kind + content + sums[kind] for kind, content in parts.items()]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))
    with warnings.catch_warnings(record=True) as said, pytest.raises(UserError, match=r"7.png is 9000 x 10000 pixels"):
        load_dataset(str(tmp_path / "set"))
    assert not said


def test_names_of_arrays_are_cut_in_an_error(tmp_path):
    np.savez(tmp_path / "a.npz", **{"a" * 30_000: IMAGES})
    with pytest.raises(UserError, match=f"a.npz holds {'a' * 40}; allowed"):
        load_dataset(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("write", ["npz", "hdf5", "tfrecord", "arrays"])
@pytest.mark.parametrize(("name", "value"), [("mean", (-1, 3, 3)), ("mean", (1, 256, 3)), ("std", (1, 2, 1e9))])
def test_colors_that_no_image_has_are_refused(tmp_path, write, name, value):
    colors = {"mean": (120.0, 120.0, 120.0), "std": (60.0, 60.0, 60.0)}
    path, labels = tmp_path / {"npz": "a.npz", "hdf5": "a.h5"}.get(write, "a"), np.arange(4)
    if write == "arrays":
        with pytest.raises(UserError, match=f"{name} is .*; allowed: 0 to 255 units"):
            Dataset.from_arrays(IMAGES, labels, IMAGES, labels, **{**colors, name: value})
        return
    made = Dataset.from_arrays(IMAGES, labels, IMAGES, labels, **colors)
    convert(dataclasses.replace(made, **colors), path, write)
    if write == "npz":
        arrays = {**np.load(path), name: np.array(value)}
        np.savez(path, **arrays)
    elif write == "hdf5":
        with pytest.importorskip("h5py").File(path, "a") as file:
            file.attrs[name] = value
    else:
        facts = json.loads((path / "dataset.json").read_text())
        (path / "dataset.json").write_text(json.dumps({**facts, name: list(map(float, value))}))
    with pytest.raises(UserError, match="allowed: 0 to 255 units"):
        load_dataset(str(path))
