import dataclasses
import hashlib
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch

from fastcifar.catalogue import DATASETS
from fastcifar.data import describe, load_dataset
from fastcifar.data.cifar import load_release
from fastcifar.data.releases import CIFAR10, CIFAR100, CIFAR100_COARSE
from fastcifar.errors import UserError
from tests.data.conftest import RELEASES, make_small

REAL_DATA = os.environ.get("FASTCIFAR_DATA")


@pytest.fixture(params=RELEASES)
def small(request, tmp_path):
    return make_small(request.param, tmp_path)


def record_size(small):
    return 3072 + len(small.release.labels)


def refused(small, place, message):
    """Return the error line for `place`, which must match `message`."""
    with pytest.raises(UserError, match=message) as caught:
        load_release(small.release, place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def real(release, **options):
    """Return the real data in $FASTCIFAR_DATA, which holds CIFAR-10 and may hold CIFAR-100; else skip the test."""
    folder = REAL_DATA or pytest.skip("$FASTCIFAR_DATA is not set")
    try:
        return load_dataset(release.name, folder, **options)
    except UserError as error:
        if release is CIFAR10 or "holds no" not in str(error):
            raise
        pytest.skip(str(error))


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


@pytest.mark.parametrize("kind", ["folder", "filename"])
@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("inside", [True, False])
def test_every_official_form_gives_the_same_dataset_by_its_own_path_and_by_its_folders(
    small, tmp_path, version, kind, inside
):
    form = getattr(getattr(small.release, version), kind)
    place = tmp_path / "place"
    place.mkdir()
    (small.folder / form).rename(place / form)
    dataset = load_release(small.release, place if inside else place / form)
    assert_same(dataset, small)
    assert dataset.source == str(place / form)
    assert (dataset.name, dataset.classes) == (small.release.name, small.release.classes)


def test_folders_and_archives_are_known_by_what_they_hold_and_not_by_name_alone(small, tmp_path):
    small.binary.rename(tmp_path / "renamed")
    assert_same(load_release(small.release, tmp_path / "renamed"), small)
    (small.folder / small.release.python.filename).rename(tmp_path / "mirror.tgz")
    assert_same(load_release(small.release, tmp_path / "mirror.tgz"), small)


@pytest.mark.parametrize("form", ["binary", "python", "npz"])
def test_coarse_labels_come_from_every_form(tmp_path, form):
    small = make_small("cifar100", tmp_path)
    coarse = {"name": "cifar100:coarse", "classes": CIFAR100_COARSE.classes, "learned": CIFAR100_COARSE.learned}
    small.release, small.labels = dataclasses.replace(small.release, **coarse), small.labels % 20
    place = tmp_path / "cifar100.npz"
    if form == "npz":
        save_split(small, place)
        refused(small, place, "or no .npz with train_images, train_coarse_labels, test_images, test_coarse_labels, nor")
        refused(small, tmp_path, "or no .npz with train_images, train_coarse_labels, test_images, test_coarse_labels")
        labels = {"train_coarse_labels": small.labels[:100], "test_coarse_labels": small.labels[100:]}
        np.savez(place, train_images=small.images[:100], test_images=small.images[100:], **labels)
    else:
        place = getattr(small, form)
    dataset = load_release(small.release, place)
    assert_same(dataset, small)
    assert (dataset.name, len(dataset.classes)) == ("cifar100:coarse", 20)


@pytest.mark.filterwarnings("ignore::fastcifar.errors.Notice")
def test_a_download_is_verified_for_coarse_labels_too(tmp_path):
    small, cache = make_small("cifar100", tmp_path), tmp_path / "cache"
    fine, mirror = small.release, small.folder.as_uri()
    small.release = dataclasses.replace(fine, learned=CIFAR100_COARSE.learned)
    for release in (small.release, fine):
        dataset = load_release(release, None, cache, mirror)
        assert dataset.verified == "checksums made from the official archive"
    (batch, _), sums = sorted((cache / small.binary.name).glob("*.bin")), cache / small.binary.name / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(lines[:2]))
    refused(small, cache, "SHA256SUMS is damaged")
    sums.write_text("".join(lines))
    content = bytearray(batch.read_bytes())
    content[1] ^= 1  # a fine label, which this set does not read
    batch.write_bytes(content)
    refused(small, cache, "test.bin is damaged: its sha256 is ")


@pytest.mark.parametrize("inside", [True, False])
def test_npz_files_give_the_same_dataset(small, tmp_path, inside):
    place = tmp_path / "place"
    place.mkdir()
    save_split(small, place / "four.npz")
    assert_same(load_release(small.release, place if inside else place / "four.npz"), small)
    (place / "four.npz").unlink()
    np.savez_compressed(place / "two.npz", images=np.asfortranarray(small.images), labels=small.labels.astype(np.int32))
    assert_same(load_release(small.release, place if inside else place / "two.npz"), small)


def test_an_npz_is_found_among_others_that_are_something_else(small, tmp_path):
    save_split(small, tmp_path / "data.npz")
    np.savez(tmp_path / "another.npz", logits=np.zeros(3))
    assert_same(load_release(small.release, tmp_path), small)
    save_split(small, tmp_path / "copy.npz")
    refused(small, tmp_path, r"holds copy.npz and data.npz; allowed: one")
    for name in ("copy.npz", "data.npz"):
        np.savez(tmp_path / name, logits=np.zeros(3))
    refused(small, tmp_path, r"another.npz is damaged, or no .npz with train_images")


def test_an_npz_that_is_called_as_another_set_is_not_looked_at(small, tmp_path):
    for name in RELEASES:
        np.savez(tmp_path / f"{name}.npz", images=small.images, labels=small.labels % RELEASES[name].labels[-1][1])
    assert_same(load_release(small.release, tmp_path), small)
    (tmp_path / f"{small.release.name}.npz").unlink()
    refused(small, tmp_path, f"holds no {small.release.title}")


def test_an_npz_of_a_set_with_fewer_classes_is_refused(tmp_path):
    few = make_small("cifar10", tmp_path)
    np.savez(tmp_path / "data.npz", images=few.images, labels=few.labels)
    with pytest.raises(UserError, match=r"data.npz is no CIFAR-100: its largest label is 9; allowed: 99"):
        load_release(RELEASES["cifar100"], tmp_path / "data.npz")


@pytest.mark.parametrize("version", ["binary", "python"])
def test_the_folders_of_one_set_are_not_taken_for_the_others(small, version):
    other = next(each for each in RELEASES.values() if each.name != small.release.name)
    with pytest.raises(UserError, match=f"holds no {other.title}; looked for {other.binary.folder}/, "):
        load_release(other, small.folder)
    renamed = small.folder.parent / getattr(other, version).folder
    getattr(small, version).rename(renamed)
    with pytest.raises(UserError, match="lacks "):
        load_release(other, renamed)


def test_binary_records_are_their_labels_and_three_planes(small):
    batch = len(small.release.records) - 2  # the last of the training set
    raw, size = (small.binary / small.release.binary.batches[batch]).read_bytes(), record_size(small)
    dataset = load_release(small.release, small.binary)
    record, place = raw[3 * size : 4 * size], sum(small.release.records[:batch]) + 3
    assert dataset.train.labels[place] == record[size - 3073]
    for row, column, channel in [(0, 0, 0), (31, 0, 2), (5, 17, 1)]:
        expected = record[size - 3072 + channel * 1024 + row * 32 + column]
        assert dataset.train.images[place, row, column, channel] == expected


def test_sha256_is_of_images_then_labels_of_both_splits_in_every_form(small, tmp_path):
    train, test = slice(100), slice(100, 120)
    content = b"".join(
        small.images[part].tobytes() + small.labels[part].astype(np.uint8).tobytes() for part in (train, test)
    )
    save_split(small, tmp_path / "data.npz")
    for place in (small.binary, small.python, small.folder / small.release.binary.filename, tmp_path / "data.npz"):
        assert load_release(small.release, place).sha256 == hashlib.sha256(content).hexdigest()


def test_data_dir_goes_before_the_environment_and_both_before_the_cache(small, tmp_path, monkeypatch):
    places = {}
    column = len(small.release.labels) - 1
    for number, name in enumerate(("given", "named", "cache")):
        first = tmp_path / name / small.release.binary.folder / small.release.binary.batches[0]
        shutil.copytree(small.binary, first.parent)
        content = first.read_bytes()
        first.write_bytes(content[:column] + bytes([number]) + content[column + 1 :])
        places[name] = tmp_path / name
    assert load_release(small.release, None, places["cache"]).train.labels[0] == 2
    monkeypatch.setenv("FASTCIFAR_DATA", str(places["named"]))
    assert load_release(small.release, None, places["cache"]).train.labels[0] == 1
    assert load_release(small.release, places["given"], places["cache"]).train.labels[0] == 0


def test_a_place_may_begin_with_the_home_folder(small, monkeypatch):
    monkeypatch.setenv("HOME", str(small.folder))
    assert_same(load_release(small.release, f"~/{small.binary.name}"), small)


def test_a_named_place_with_nothing_in_it_is_an_error_that_says_what_was_looked_for(small, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    line = refused(small, empty, f"data_dir .*empty holds no {small.release.title};")
    for form in (f"{small.binary.name}/", f"{small.python.name}/", "binary.tar.gz", "python.tar.gz", ".npz"):
        assert form in line
    refused(small, tmp_path / "absent", "data_dir .*absent does not exist")
    monkeypatch.setenv("FASTCIFAR_DATA", str(empty))
    refused(small, None, rf"\$FASTCIFAR_DATA .*empty holds no {small.release.title};")


def test_a_file_of_no_known_kind_is_refused(small, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    refused(small, tmp_path / "notes.txt", "is a file of no known kind; allowed: a folder, a .tar.gz or an .npz")


@pytest.mark.parametrize("version", ["binary", "python"])
def test_an_archive_is_checked_by_its_hash(small, version):
    path = small.folder / getattr(small.release, version).filename
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
    archive = small.release.binary
    path = small.folder / archive.filename
    with tarfile.open(path, "w:gz") as tar:
        for name in archive.batches[1:]:
            tar.add(small.binary / name, f"{archive.folder}/{name}")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    small.release = dataclasses.replace(small.release, binary=dataclasses.replace(archive, md5=md5))
    refused(small, path, f"binary.tar.gz lacks {archive.folder}/{archive.batches[0]}")


@pytest.mark.parametrize("change", [-(10**9), 1 - 10**9, -1, 1, 3072])
def test_a_batch_of_another_size_is_refused_by_name_and_size(small, change):
    path = small.binary / small.release.binary.batches[0]
    content, size, records = path.read_bytes(), record_size(small), small.release.records[0]
    kept = len(content) + change if change > -(10**9) + 1 else change + 10**9
    path.write_bytes((content + bytes(size))[:kept])
    allowed = f"{len(content):,}, {records} records of {size:,}"
    refused(small, small.folder, f"{path.name} is {kept:,} bytes; allowed: {allowed}")


@pytest.mark.parametrize("form", ["binary", "python"])
def test_a_folder_that_lacks_a_batch_is_refused_by_name(small, form):
    folder, name = getattr(small, form), re.escape(getattr(small.release, form).batches[0])
    (folder / getattr(small.release, form).batches[0]).unlink()
    refused(small, folder, rf"{folder.name} lacks {name}; allowed: all of {name}")


def test_a_label_of_no_class_is_refused_by_file_place_and_label(small, tmp_path):
    classes = small.release.labels[-1][1]
    path = small.binary / small.release.binary.batches[0]
    right, size = path.read_bytes(), record_size(small)
    for column, (_, most) in enumerate(small.release.labels):
        content = bytearray(right)
        content[7 * size + column] = 200
        path.write_bytes(content)
        what = "label" if column == len(small.release.labels) - 1 else "coarse label"
        refused(small, small.binary, rf"{path.name} has {what} 200 at image 7 \(from 0\); allowed: 0 to {most - 1}")
    path = small.python / small.release.python.batches[-1]
    place = path.read_bytes().index(b"]q\5(") + 4
    content = bytearray(path.read_bytes())
    content[place + 2 * 19 + 1] = classes
    path.write_bytes(content)
    refused(small, small.python, f"{path.name} has label {classes} at image 19")
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
        raise PermissionError(13, "Permission denied", str(small.binary / "a.bin"))

    monkeypatch.setattr("builtins.open", denied)
    refused(small, small.folder, "cannot read .*a.bin: Permission denied")


def test_load_dataset_refuses_an_unknown_name_and_a_wrong_holdout(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'imagenet'; allowed: cifar10, cifar100, "):
        load_dataset("imagenet")
    for holdout in (-1, 10_000):
        with pytest.raises(UserError, match=f"holdout is {holdout}; allowed: 1 to 9,999"):
            load_dataset("synthetic", holdout=holdout)
    with pytest.raises(UserError, match=r"data_dir .* does not exist"):
        load_dataset(data_dir=tmp_path / "absent")


@pytest.mark.parametrize("release", [CIFAR10, CIFAR100], ids=RELEASES)
def test_a_release_says_the_same_of_itself_everywhere(release):
    assert len(release.classes) == release.labels[-1][1] == DATASETS[release.name].classes
    assert sum(release.records) == 60_000 and release.records[-1] == 10_000
    for archive in release.archives:
        assert len(archive.batches) == len(release.records) and len(archive.batch_md5) in (0, len(release.records))


@pytest.mark.parametrize("release", [CIFAR10, CIFAR100], ids=RELEASES)
def test_the_real_data_has_the_constants_that_are_written_down(release):
    facts = describe(real(release))
    classes = len(release.classes)
    assert (facts["train_size"], facts["test_size"]) == (50_000, 10_000)
    assert facts["train_counts"] == [50_000 // classes] * classes
    assert facts["test_counts"] == [10_000 // classes] * classes
    assert facts["mean"] == pytest.approx(release.mean, abs=0.006)
    assert facts["std"] == pytest.approx(release.std, abs=0.006)


@pytest.mark.parametrize(("release", "label", "name"), [(CIFAR10, 6, "frog"), (CIFAR100, 19, "cattle")], ids=RELEASES)
def test_the_real_data_holds_out_equally_many_of_each_class(release, label, name):
    dataset, classes = real(release, holdout=5_000), len(release.classes)
    assert torch.bincount(dataset.test.labels).tolist() == [5_000 // classes] * classes
    assert torch.bincount(dataset.train.labels).tolist() == [45_000 // classes] * classes
    assert dataset.classes[label] == name and real(release).train.labels[0] == label


def test_a_folder_for_all_sets_and_leftovers_of_a_conversion(small, tmp_path):
    below = tmp_path / "all" / small.release.name
    below.mkdir(parents=True)
    np.savez(below / "mine.npz", images=small.images, labels=small.labels)
    (below / ".partial-mine.npz").write_bytes((below / "mine.npz").read_bytes())  # a killed conversion's
    for place in (below, tmp_path / "all"):
        found = load_release(small.release, place)
        assert found.source == str(below / "mine.npz") and np.array_equal(found.test.images, small.images[100:])
