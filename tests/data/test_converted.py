"""Sets that are slow to read are kept in the user's cache: right, whole, and made anew where their files change."""

import dataclasses
import json
import os
import shutil
from functools import partial

import numpy as np
import pytest

from fastcifar.data import converted as keeping
from fastcifar.data import digits, load_dataset, tfrecord
from fastcifar.data.anew import READ_ANEW
from fastcifar.data.cifar import load_release
from fastcifar.data.converted import converted
from fastcifar.data.dataset import fingerprint
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import Notice
from tests.data.conftest import make_files


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    monkeypatch.setattr(keeping, "SLOW", 0)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"one")
    return path


def kept(tmp_path):
    return sorted((tmp_path / "xdg-cache" / "fastcifar" / "converted").iterdir())


class Reads:
    """A reader that counts how often it is called."""

    def __init__(self, seed=0):
        made, val = make_synthetic(12, 5, seed), make_synthetic(1, 3).test
        sha256 = fingerprint(made.train, made.test, val)
        self.dataset, self.count = dataclasses.replace(made, val=val, sha256=sha256, resized=32), 0

    def __call__(self):
        self.count += 1
        return self.dataset


def same(one, two):
    for name in ("train", "test", "val"):
        a, b = getattr(one, name), getattr(two, name)
        assert a is b is None or (a.images.equal(b.images) and a.labels.equal(b.labels))
    names = ("name", "classes", "mean", "std", "sha256", "source", "verified", "holdout", "subset", "resized")
    assert all(getattr(one, name) == getattr(two, name) for name in names)


def test_a_kept_set_is_the_same_and_read_once(source, tmp_path):
    read = Reads()
    for _ in range(3):
        same(converted("made:up", [source], read), read.dataset)
    assert read.count == 1 and len(kept(tmp_path)) == 1


def test_a_set_is_kept_for_what_it_is_made_of_and_each_way_of_reading(tmp_path):
    reads = [Reads(seed) for seed in range(3)]
    for made_of, how, seed in ((["a 1", "b 2"], "", 0), (["a 1", "b 2"], 32, 1), (["a 1", "b 3"], 32, 2)) * 2:
        same(converted("made", [tmp_path], reads[seed], iter(made_of), how), reads[seed].dataset)
    assert [read.count for read in reads] == [1, 2, 2] and len(kept(tmp_path)) == 2


@pytest.mark.parametrize("form", ["packed", "floats", "first", "stored", "grey", "tfrecord"])
def test_a_set_of_ones_own_is_kept_unless_its_file_is_as_in_memory(tmp_path, form, monkeypatch):
    pixels = np.zeros((6, 8, 8, 3), np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None]
    images = {"floats": pixels / 255, "first": pixels.transpose(0, 3, 1, 2), "grey": pixels[..., 0]}.get(form, pixels)
    parts = {"train_images": images[:4], "test_images": images[4:], "train_labels": [0, 1, 0, 1], "test_labels": [1, 0]}
    path = tmp_path / "own.npz"
    (np.savez_compressed if form == "packed" else np.savez)(path, **parts)
    first = load_dataset(str(path))
    if form == "tfrecord":
        shutil.rmtree(tmp_path / "xdg-cache", ignore_errors=True)
        path = tmp_path / "records"
        path.mkdir()
        for name in ("train", "test"):
            tfrecord.write_records(path / f"{name}.tfrecord", getattr(first, name))
        (path / tfrecord.FACTS).write_text(json.dumps(tfrecord.facts_of(first)))
        first = load_dataset(str(path))
    assert np.array_equal(first.test.images, pixels[4:])
    is_kept = form in ("packed", "floats", "tfrecord")
    assert (tmp_path / "xdg-cache").exists() == is_kept
    for reader in ("npz._read", "tfrecord.read_records") if is_kept else ():
        monkeypatch.setattr(f"fastcifar.data.{reader}", lambda *_: 1 / 0)
    same(load_dataset(str(path)), first)


def test_what_is_read_quickly_is_not_kept(source, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "SLOW", 10)
    converted("made", [source], Reads())
    assert not (tmp_path / "xdg-cache").exists()


@pytest.mark.parametrize("change", ["size", "time", "place", "name"])
def test_other_files_are_read_anew_and_one_place_keeps_one_set(source, tmp_path, change):
    converted("made", [source], Reads())
    if change == "size":
        source.write_bytes(b"three")
    elif change == "time":
        os.utime(source, (1, 1))
    elif change == "place":
        source = source.rename(tmp_path / "elsewhere")
    read = Reads(1)
    same(converted("other" if change == "name" else "made", [source], read), read.dataset)
    assert read.count == 1 and len(kept(tmp_path)) == (1 if change in ("size", "time") else 2)


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"[[1]]\n", b"[" * 99_999, "byte", "end", "line", "mean", "shape"])
def test_a_damaged_one_is_made_anew(source, tmp_path, damage):
    read = Reads()
    converted("made", [source], read)
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    changed = {
        "byte": whole[:-30_000] + bytes([whole[-30_000] ^ 1]) + whole[-29_999:],
        "end": whole[:-1],
        "line": whole.replace(b'"facts"', b'"fakes"', 1),
        "mean": whole.replace(b'"mean": [1', b'"mean": [2', 1),
        "shape": whole.replace(b"[12, 32, 32]", b"[-2, 32, 32]", 1),
    }
    file.write_bytes(changed[damage] if isinstance(damage, str) else damage)
    assert file.read_bytes() != whole
    same(converted("made", [source], read), read.dataset)
    assert read.count == 2 and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_to_is_said(source, tmp_path):
    (tmp_path / "xdg-cache").write_bytes(b"")
    read = Reads()
    with pytest.warns(Notice, match=r"cannot be made: .*; made is read from its own files every time"):
        same(converted("made", [source], read), read.dataset)


def test_slow_forms_are_kept_and_others_are_not(small, tmp_path, monkeypatch):
    def unread(*_):
        raise AssertionError("read again")

    release = small.release
    for form, reader in ((release.binary.filename, "_read_archive"), (release.python.folder, "_read_folder")):
        first = load_release(release, small.folder / form)
        with monkeypatch.context() as patch:
            patch.setattr(f"fastcifar.data.cifar.{reader}", unread)
            second = load_release(release, small.folder / form)
        assert (second.sha256, second.verified, second.source) == (first.sha256, first.verified, first.source)
    assert len(kept(tmp_path)) == 2
    load_release(release, small.binary)
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("name", ["svhn", "mnist"])
def test_a_set_of_several_files_is_kept(tmp_path, name, monkeypatch):
    files = make_files(name, tmp_path / "official", np.random.default_rng(1))
    load = partial(digits.load_svhn if name == "svhn" else digits._load_idx, published=files.published)
    first, reader = load(data_dir=files.folder), "_read_svhn" if name == "svhn" else "_read_idx_files"
    read, reads = getattr(digits, reader), []
    monkeypatch.setattr(digits, reader, lambda *files: reads.append(files) or read(*files))
    same(load(data_dir=files.folder), first)
    assert not reads
    os.utime(files.paths[1], (1, 1))
    same(load(data_dir=files.folder), first)
    assert reads


def test_verification_reads_the_files_again(source):
    converted("made", [source], Reads())
    before, read = READ_ANEW.set(True), Reads(seed=1)
    try:
        same(converted("made", [source], read), read.dataset)
    finally:
        READ_ANEW.reset(before)
    assert read.count == 1
