import dataclasses
import hashlib
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch

from fastcifar.data import CIFAR10_MEAN, CIFAR10_STD, describe, load_dataset
from fastcifar.data.cifar10 import load_cifar10
from fastcifar.errors import UserError

REAL_DATA = os.environ.get("FASTCIFAR_DATA")


def refused(small, place, message):
    """Return the error line for `place`, which must match `message`."""
    with pytest.raises(UserError, match=message) as caught:
        load_cifar10(place, small.release)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(dataset, small):
    assert torch.equal(dataset.train.images, torch.from_numpy(small.images[:100]))
    assert torch.equal(dataset.test.images, torch.from_numpy(small.images[100:]))
    assert dataset.train.images.is_contiguous() and dataset.test.images.is_contiguous()
    assert dataset.train.labels.tolist() == small.labels[:100].tolist()
    assert dataset.test.labels.tolist() == small.labels[100:].tolist()


def save_split(small, path):
    np.savez(
        path,
        train_images=small.images[:100],
        train_labels=small.labels[:100].astype(np.uint8),
        test_images=small.images[100:],
        test_labels=small.labels[100:],
    )


@pytest.mark.parametrize(
    "form", ["cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"]
)
@pytest.mark.parametrize("inside", [True, False])
def test_every_official_form_gives_the_same_dataset_by_its_own_path_and_by_its_folders(small, tmp_path, form, inside):
    place = tmp_path / "place"
    place.mkdir()
    (small.folder / form).rename(place / form)
    dataset = load_cifar10(place if inside else place / form, small.release)
    assert_same(dataset, small)
    assert dataset.source == str(place / form)
    assert dataset.name == "cifar10"


def test_folders_and_archives_are_known_by_what_they_hold_and_not_by_name_alone(small, tmp_path):
    small.binary.rename(tmp_path / "renamed")
    assert_same(load_cifar10(tmp_path / "renamed", small.release), small)
    (small.folder / "cifar-10-python.tar.gz").rename(tmp_path / "mirror.tgz")
    assert_same(load_cifar10(tmp_path / "mirror.tgz", small.release), small)


@pytest.mark.parametrize("inside", [True, False])
def test_npz_files_give_the_same_dataset(small, tmp_path, inside):
    place = tmp_path / "place"
    place.mkdir()
    save_split(small, place / "four.npz")
    assert_same(load_cifar10(place if inside else place / "four.npz", small.release), small)
    (place / "four.npz").unlink()
    np.savez_compressed(place / "two.npz", images=np.asfortranarray(small.images), labels=small.labels.astype(np.int32))
    assert_same(load_cifar10(place if inside else place / "two.npz", small.release), small)


def test_an_npz_is_found_among_others_that_are_something_else(small, tmp_path):
    save_split(small, tmp_path / "data.npz")
    np.savez(tmp_path / "another.npz", logits=np.zeros(3))
    assert_same(load_cifar10(tmp_path, small.release), small)
    save_split(small, tmp_path / "copy.npz")
    refused(small, tmp_path, r"holds copy.npz and data.npz; allowed: one")
    for name in ("copy.npz", "data.npz"):
        np.savez(tmp_path / name, logits=np.zeros(3))
    refused(small, tmp_path, r"another.npz is damaged, or no .npz with train_images")


def test_binary_records_are_a_label_and_three_planes(small):
    raw = (small.binary / "data_batch_2.bin").read_bytes()
    dataset = load_cifar10(small.binary, small.release)
    record = raw[3 * 3073 : 4 * 3073]
    assert dataset.train.labels[20 + 3] == record[0]
    for row, column, channel in [(0, 0, 0), (31, 0, 2), (5, 17, 1)]:
        expected = record[1 + channel * 1024 + row * 32 + column]
        assert dataset.train.images[20 + 3, row, column, channel] == expected


def test_sha256_is_of_images_then_labels_of_both_splits_in_every_form(small, tmp_path):
    train, test = slice(100), slice(100, 120)
    content = b"".join(
        small.images[part].tobytes() + small.labels[part].astype(np.uint8).tobytes() for part in (train, test)
    )
    save_split(small, tmp_path / "data.npz")
    for place in (small.binary, small.python, small.folder / "cifar-10-binary.tar.gz", tmp_path / "data.npz"):
        assert load_cifar10(place, small.release).sha256 == hashlib.sha256(content).hexdigest()


def test_data_dir_goes_before_the_environment_and_both_before_the_cache(small, tmp_path, monkeypatch):
    places = {}
    for number, name in enumerate(("given", "named", "cache")):
        shutil.copytree(small.binary, tmp_path / name / "cifar-10-batches-bin")
        first = tmp_path / name / "cifar-10-batches-bin" / "data_batch_1.bin"
        first.write_bytes(bytes([number]) + first.read_bytes()[1:])
        places[name] = tmp_path / name
    assert load_cifar10(None, small.release, places["cache"]).train.labels[0] == 2
    monkeypatch.setenv("FASTCIFAR_DATA", str(places["named"]))
    assert load_cifar10(None, small.release, places["cache"]).train.labels[0] == 1
    assert load_cifar10(places["given"], small.release, places["cache"]).train.labels[0] == 0


def test_a_place_may_begin_with_the_home_folder(small, monkeypatch):
    monkeypatch.setenv("HOME", str(small.folder))
    assert_same(load_cifar10("~/cifar-10-batches-bin", small.release), small)


def test_a_named_place_with_nothing_in_it_is_an_error_that_says_what_was_looked_for(small, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    line = refused(small, empty, "data_dir .*empty holds no CIFAR-10")
    for form in ("cifar-10-batches-bin/", "cifar-10-batches-py/", "binary.tar.gz", "python.tar.gz", ".npz"):
        assert form in line
    refused(small, tmp_path / "absent", "data_dir .*absent does not exist")
    monkeypatch.setenv("FASTCIFAR_DATA", str(empty))
    refused(small, None, r"\$FASTCIFAR_DATA .*empty holds no CIFAR-10")


def test_a_file_of_no_known_kind_is_refused(small, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    refused(small, tmp_path / "notes.txt", "is a file of no known kind; allowed: a folder, a .tar.gz or an .npz")


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"])
def test_an_archive_is_checked_by_its_hash(small, name):
    path = small.folder / name
    content = path.read_bytes()
    size = f"{len(content):,}"
    path.write_bytes(content[: len(content) // 2])
    line = refused(small, path, "is only half downloaded, or damaged")
    assert f"allowed: {size} bytes" in line
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(small, path, f"is not the official file: {size} bytes with md5 .* allowed: {size} bytes with md5 ")
    path.write_bytes(b"")
    refused(small, path, "is only half downloaded, or damaged: 0 bytes")
    path.rename(small.folder / "other.tar.gz")
    line = refused(small, small.folder / "other.tar.gz", "is no official archive")
    assert small.release.binary.md5 in line and small.release.python.md5 in line


def test_an_archive_that_lacks_a_batch_is_refused_by_name(small):
    path = small.folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in small.release.binary.batches[1:]:
            tar.add(small.binary / name, f"cifar-10-batches-bin/{name}")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    small.release = dataclasses.replace(small.release, binary=dataclasses.replace(small.release.binary, md5=md5))
    refused(small, path, "binary.tar.gz lacks cifar-10-batches-bin/data_batch_1.bin")


@pytest.mark.parametrize("kept", [0, 1, 20 * 3073 - 1])
def test_a_truncated_batch_is_refused_by_name_and_size(small, kept):
    path = small.binary / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:kept])
    refused(small, small.folder, rf"data_batch_4.bin is {kept:,} bytes; allowed: 61,460, 20 records of 3,073")


def test_a_batch_that_is_too_long_is_refused(small):
    path = small.binary / "test_batch.bin"
    path.write_bytes(path.read_bytes() + b"\0" * 3073)
    refused(small, small.folder, "test_batch.bin is 64,533 bytes; allowed: 61,460")


@pytest.mark.parametrize("form", ["binary", "python"])
def test_a_folder_that_lacks_a_batch_is_refused_by_name(small, form):
    folder = getattr(small, form)
    name = sorted(path.name for path in folder.iterdir())[0]
    (folder / name).unlink()
    refused(small, folder, rf"{folder.name} lacks {re.escape(name)}; allowed: all of data_batch_1")


def test_a_label_above_nine_is_refused_by_file_place_and_label(small, tmp_path):
    path = small.binary / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    content[7 * 3073] = 200
    path.write_bytes(content)
    refused(small, small.binary, r"data_batch_3.bin has label 200 at image 7 \(from 0\); allowed: 0 to 9")
    path = small.python / "test_batch"
    place = path.read_bytes().index(b"]q\5(") + 4
    content = bytearray(path.read_bytes())
    content[place + 2 * 19 + 1] = 10
    path.write_bytes(content)
    refused(small, small.python, "test_batch has label 10 at image 19")
    labels = small.labels.copy()
    labels[110] = -1
    np.savez(tmp_path / "data.npz", images=small.images, labels=labels)
    refused(small, tmp_path / "data.npz", "data.npz: labels has label -1 at image 110")


def test_an_npz_with_other_arrays_is_refused(small, tmp_path):
    path = tmp_path / "data.npz"
    images, labels = small.images, small.labels
    np.savez(path, pictures=images)
    refused(small, tmp_path, "data.npz is damaged, or no .npz with train_images, .* nor with images and labels")
    np.savez(path, images=images[:-1], labels=labels)
    refused(small, path, r"images is uint8 \[119, 32, 32, 3\]; allowed: uint8 \[120, 32, 32, 3\]")
    np.savez(path, images=images.transpose(0, 3, 1, 2), labels=labels)
    refused(small, path, r"images is uint8 \[120, 3, 32, 32\]; allowed")
    np.savez(path, images=images.astype(np.float32), labels=labels)
    refused(small, path, r"images is float32 \[120, 32, 32, 3\]; allowed: uint8")
    np.savez(path, images=images, labels=labels.astype(np.float64))
    refused(small, path, r"labels is float64 \[120\]; allowed: integers \[120\]")
    np.savez(path, images=images, labels=labels.astype(object))
    refused(small, path, r"data.npz: labels is object \[120\]; allowed: integers \[120\]")


def test_a_damaged_npz_is_refused(small, tmp_path):
    path = tmp_path / "data.npz"
    save_split(small, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(small, path, "data.npz is damaged, or no .npz")
    middle = len(content) // 3
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    refused(small, path, "data.npz: train_images is damaged: Bad CRC-32")
    path.write_bytes(b"")
    refused(small, path, "data.npz is damaged, or no .npz")


def test_an_unreadable_place_is_one_line(small, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(small.binary / "data_batch_1.bin"))

    monkeypatch.setattr("builtins.open", denied)
    refused(small, small.folder, "cannot read .*data_batch_1.bin: Permission denied")


def test_load_dataset_refuses_an_unknown_name_and_a_wrong_holdout(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'mnist'; allowed: cifar10, "):
        load_dataset("mnist")
    for holdout in (-1, 10_000):
        with pytest.raises(UserError, match=f"holdout is {holdout}; allowed: 1 to 9,999"):
            load_dataset("synthetic", holdout=holdout)
    with pytest.raises(UserError, match=r"data_dir .* does not exist"):
        load_dataset(data_dir=tmp_path / "absent")


@pytest.mark.skipif(not REAL_DATA, reason="$FASTCIFAR_DATA is not set")
def test_the_real_data_has_the_constants_that_are_written_down():
    facts = describe(load_dataset(data_dir=REAL_DATA))
    assert (facts["train_size"], facts["test_size"]) == (50_000, 10_000)
    assert facts["train_counts"] == [5_000] * 10 and facts["test_counts"] == [1_000] * 10
    assert facts["mean"] == pytest.approx(CIFAR10_MEAN, abs=0.006)
    assert facts["std"] == pytest.approx(CIFAR10_STD, abs=0.006)


@pytest.mark.skipif(not REAL_DATA, reason="$FASTCIFAR_DATA is not set")
def test_the_real_data_holds_out_500_of_each_class():
    dataset = load_dataset(data_dir=REAL_DATA, holdout=5_000)
    assert torch.bincount(dataset.test.labels).tolist() == [500] * 10
    assert torch.bincount(dataset.train.labels).tolist() == [4_500] * 10
    assert dataset.classes[6] == "frog" and load_dataset(data_dir=REAL_DATA).train.labels[0] == 6
