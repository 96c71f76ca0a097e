"""SVHN, MNIST, Fashion-MNIST, CIFAR-10.1 and CIFAR-10-C, small, in the official formats."""

import contextlib
import gzip
import os
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.io
import torch

from fastcifar.catalogue import CORRUPTIONS, DATASETS, EXTRA_CORRUPTIONS, SEVERITIES, find, places_of
from fastcifar.data import Augment, DownloadError, Loader, cifar_tests, digits, load_dataset, places, releases
from fastcifar.data.anew import READ_ANEW
from fastcifar.data.homes import homes_of
from fastcifar.errors import DamagedData, UserError
from fastcifar.locks import claimed
from tests.data.conftest import make_files

LOADERS = {
    "svhn": digits.load_svhn,
    "svhn:extra": digits.load_svhn,
    "mnist": digits._load_idx,
    "fashion-mnist": digits._load_idx,
    "cifar10.1": cifar_tests.load_cifar10_1,
    "cifar10.1:v4": cifar_tests.load_cifar10_1,
    "cifar10-c": partial(cifar_tests.load_cifar10_c, variant="gaussian-noise-2"),
}
pytestmark = pytest.mark.filterwarnings("ignore::fastcifar.errors.Notice")


@pytest.fixture(params=LOADERS)
def small(request, tmp_path):
    return make_files(request.param, tmp_path / "official", np.random.default_rng(3))


def load(small, place=None, mirror=None):
    return LOADERS[small.published.name](data_dir=place, mirror=mirror, published=small.published)


def refused(small, place, message):
    with pytest.raises(UserError, match=message) as caught:
        load(small, place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(dataset, small):
    images, labels = small.images, small.labels
    if small.published.name == "cifar10-c":
        images, labels = images[4:8], labels[4:8]
    first = len(images) - small.published.records[-1]
    for split, rows in ((dataset.train, slice(first)), (dataset.test, slice(first, None))):
        assert torch.equal(split.images, torch.from_numpy(images[rows]))
        assert split.labels.tolist() == labels[rows].tolist()
    assert dataset.classes == small.published.classes and dataset.mean == small.published.mean


def test_a_set_is_read_from_its_folder_and_from_one_above_it(small, tmp_path):
    dataset = load(small, small.folder)
    assert_same(dataset, small)
    assert dataset.verified == {
        "cifar10.1": "sha256 of the official files",
        "cifar10.1:v4": "sha256 of the official files",
        "cifar10-c": "sizes and labels only; its hash was not looked at, as data verify does",
    }.get(small.published.name, "md5 of the official files")
    for name in small.published.folders:
        above = tmp_path / f"above-{name.replace('/', '-')}"
        (above / small.published.folders[0]).mkdir(parents=True)  # without the set
        shutil.copytree(small.folder, above / name, dirs_exist_ok=True)
        assert load(small, above).sha256 == dataset.sha256


def test_a_set_that_is_nowhere_is_refused_with_what_was_looked_for(small, tmp_path, monkeypatch):
    line = refused(small, tmp_path, f"data_dir {tmp_path} holds no {small.published.title}; looked for ")
    assert all(file.filename in line for file in small.published.files)
    assert line.endswith(f", in it or in its {'/ or '.join(small.published.folders)}/")
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "absent"))
    refused(small, None, r"\$FASTCIFAR_DATA .*absent does not exist; looked for ")


def test_missing_files_are_downloaded_once_each_whole(small, tmp_path, monkeypatch):
    cache = tmp_path / "xdg-cache" / "fastcifar"
    folder = cache / small.published.folders[0]
    last = small.paths[-1]
    last.rename(last.with_suffix(".away"))
    homes = homes_of(small.published.files, [f"{small.folder.as_uri()}/"], None)
    monkeypatch.setattr("fastcifar.data.files.homes_of", lambda *_: homes)
    with pytest.raises(DownloadError, match=f"cannot download .*{last.name}"):
        load(small)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in small.paths[:-1])
    last.with_suffix(".away").rename(last)
    for path in small.paths[:-1]:
        path.unlink()  # what is here is not asked for again
    assert_same(load(small), small)
    last.unlink()
    assert_same(load(small), small)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in small.paths)


def test_a_mirror_is_a_folder_of_them(small, tmp_path):
    assert_same(load(small, mirror=small.folder.as_uri()), small)
    with pytest.raises(UserError, match=r"mirror is 'http://a/other.gz'; allowed: the address"):
        load(small, mirror="http://a/other.gz")


@pytest.mark.parametrize("small", ["svhn", "mnist", "cifar10.1"], indirect=True)
def test_files_that_others_wrote_are_read_and_a_mixture_is_refused(small):
    other = replace(small.published, files=tuple(replace(file, size=1) for file in small.published.files))
    small.published, right = other, small.published
    assert load(small, small.folder).verified == "sizes and labels only"
    small.published = replace(right, files=(other.files[0], *right.files[1:]))
    name = right.files[0].filename
    refused(small, small.folder, f"official is damaged: {name} is not the official file, as the others are")


@pytest.mark.parametrize("small", ["mnist"], indirect=True)
def test_unpacked_idx_files_are_read_whatever_they_are_called(small):
    for number, path in enumerate(small.paths):
        content = gzip.decompress(path.read_bytes())
        path.unlink()
        (path if number == 0 else path.with_suffix("")).write_bytes(content)
    refused(small, small.folder, "holds no MNIST; looked for .*, or train-images-idx3-ubyte and ")
    small.paths[0].rename(small.paths[0].with_suffix(""))
    dataset = load(small, small.folder)
    assert_same(dataset, small)
    assert dataset.verified == "sizes and labels only"


@pytest.mark.parametrize("small", ["mnist", "svhn"], indirect=True)
def test_files_of_another_set_are_told_by_their_colors(small):
    small.published = replace(small.published, mean=(33.3, 33.3, 33.3))
    refused(small, small.folder, "are not those of .*the mean of their training images is .*; allowed: about 33.3, ")


@pytest.mark.parametrize("small", ["cifar10-c"], indirect=True)
def test_cifar10_c_is_read_packed_and_unpacked(small, tmp_path):
    packed, unpacked = small.folder / "CIFAR-10-C.tar", small.folder / "CIFAR-10-C"
    for place in (packed, small.folder, unpacked):
        assert_same(load(small, place), small)
    packed.unlink()
    assert_same(load(small, small.folder), small)
    for severity in SEVERITIES:
        dataset = cifar_tests.load_cifar10_c(unpacked, None, f"brightness-{severity}", small.published)
        rows = slice(4 * severity - 4, 4 * severity)
        assert np.array_equal(dataset.test.images, small.images[::-1][rows])
    (unpacked / "labels.npy").unlink()
    refused(small, unpacked, "holds no CIFAR-10-C; looked for CIFAR-10-C.tar, or gaussian_noise.npy and labels.npy, in")
    with pytest.raises(UserError, match="cifar10-c is 19 corruptions at 5 severities; allowed: one of them, as in"):
        load_dataset("cifar10-c", tmp_path)


def test_the_corruptions_are_the_variants_of_cifar10_c():
    assert len(CORRUPTIONS) == 15 and len(EXTRA_CORRUPTIONS) == 4
    assert len(DATASETS["cifar10-c"].variants) == 95
    with pytest.raises(UserError, match=r"did you mean 'fog-3'.*cifar10-c:gaussian-noise-5 and so on, 95 in all"):
        find("cifar10-c:fog3")


NEW = [name for name in DATASETS if name in {each.partition(":")[0] for each in LOADERS}]


@pytest.mark.parametrize("name", NEW)
def test_load_dataset_finds_every_set_and_says_what_it_lacks(name, tmp_path):
    for variant in ["", *DATASETS[name].variants][:3]:
        if name == "cifar10-c" and not variant:
            continue
        with pytest.raises(UserError, match=f"data_dir {tmp_path} holds no "):
            load_dataset(f"{name}:{variant}" if variant else name, tmp_path)


FACTS = [releases.SVHN, releases.SVHN_EXTRA, releases.MNIST, releases.FASHION_MNIST, releases.CIFAR10_C]


@pytest.mark.parametrize("facts", [*FACTS, *releases.CIFAR10_1.values()], ids=lambda facts: facts.name)
def test_the_published_facts_fit_each_other(facts):
    entry, _ = find(facts.name)
    assert len(facts.classes) == entry.classes and facts.homes == entry.homes
    assert entry.test_only == (not sum(facts.records[:-1]))
    for file in facts.files:
        assert len(file.md5) in (0, 32) and len(file.sha256) == 64 and file.folder == facts.folders[0]
    if facts is not releases.SVHN_EXTRA and facts is not releases.CIFAR10_1["v4"]:
        assert entry.megabytes == round(sum(file.size for file in facts.files) / 1e6)


def test_svhn_equals_what_scipy_reads(tmp_path):
    small = make_files("svhn", tmp_path, np.random.default_rng(5))
    dataset = load(small, tmp_path)
    for path, split in zip(small.paths, (dataset.train, dataset.test), strict=True):
        found = scipy.io.loadmat(path)
        assert np.array_equal(split.images, found["X"].transpose(3, 0, 1, 2))
        assert np.array_equal(split.labels, found["y"][:, 0] % 10)


def test_grey_images_are_normalized_alike_in_every_channel(tmp_path):
    small = make_files("mnist", tmp_path, np.random.default_rng(5))
    small.published = replace(small.published, mean=(127.5, 127.5, 127.5), std=releases.MNIST.std)
    dataset = load(small, tmp_path)
    how = {"augment": Augment(crop=0, flip="none"), "shuffle": False, "mean": dataset.mean, "std": dataset.std}
    ((images, labels),) = Loader(dataset.train, 40, **how)
    expected = (small.images[:40].astype(np.float64) - 127.5) / releases.MNIST.std[0]
    np.testing.assert_allclose(images.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert labels.tolist() == small.labels[:40].tolist()


def test_a_set_is_found_where_one_folder_holds_all(tmp_path, monkeypatch):
    random = np.random.default_rng(9)
    made = [make_files(name, tmp_path / name, random) for name in ("svhn", "mnist", "fashion-mnist", "cifar10.1")]
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path))
    for small in made:
        assert_same(load(small), small)
    monkeypatch.setenv("FASTCIFAR_DATA", "")
    monkeypatch.setattr(places, "user_cache", lambda: tmp_path)
    for small in made:
        assert_same(load(small), small)
    assert os.listdir(tmp_path / "svhn") and not (tmp_path / "converted").exists()


@pytest.mark.parametrize("small", ["cifar10-c"], indirect=True)
def test_all_of_cifar10_c_is_looked_at(small, monkeypatch):
    def look(place):
        return cifar_tests.look_at_cifar10_c(place, None, small.published)

    packed, unpacked = small.folder / "CIFAR-10-C.tar", small.folder / "CIFAR-10-C"
    there = ["gaussian-noise", "brightness"]
    others = [name for name in CORRUPTIONS + EXTRA_CORRUPTIONS if name not in there]
    assert look(unpacked) == (str(unpacked), "sizes and labels only", there, others)
    token = READ_ANEW.set(True)
    try:
        assert look(packed) == (str(small.folder), "md5 of the official archive", there, others)
        assert load(small, packed).verified == "md5 of the official archive"
        content = bytearray(packed.read_bytes())
        content[content.find(b"\x93NUMPY") + 5_000] ^= 1
        packed.write_bytes(content)
        for read in (look, lambda place: load(small, place)):
            with pytest.raises(DamagedData, match=r"CIFAR-10-C\.tar is damaged: its md5 is not the published one"):
                read(packed)
    finally:
        READ_ANEW.reset(token)
    labels = np.load(unpacked / "labels.npy")
    labels[-1] = (labels[-1] + 1) % 10
    np.save(unpacked / "labels.npy", labels)
    with pytest.raises(DamagedData, match="has other labels at one severity than at another"):
        look(unpacked)
    (unpacked / "brightness.npy").write_bytes(b"")
    with pytest.raises(DamagedData, match=r"brightness\.npy is damaged"):
        look(unpacked)


@pytest.mark.parametrize("small", ["mnist"], indirect=True)
def test_a_folder_called_as_another_set_is_not_taken_for_it(small, tmp_path):
    all_sets = tmp_path / "all"
    for name in ("mnist", "MNIST/raw"):
        shutil.copytree(small.folder, all_sets / name)
        assert places_of("fashion-mnist", all_sets / name)[-1] != all_sets / name
        assert load(small, all_sets / name).source == str(all_sets / name)
    for path in small.paths:  # in the folder itself, another set's: its own folder is read first
        (all_sets / path.name).touch()
    assert load(small, all_sets).source == str(all_sets / "mnist")


@pytest.mark.parametrize("small", ["mnist"], indirect=True)
def test_a_damaged_download_says_how_to_have_it_again(small, monkeypatch, tmp_path):
    homes = homes_of(small.published.files, [f"{small.folder.as_uri()}/"], None)
    monkeypatch.setattr("fastcifar.data.files.homes_of", lambda *_: homes)
    folder = tmp_path / "xdg-cache" / "fastcifar" / "mnist"
    load(small)
    (folder / small.paths[0].name).write_bytes(b"\x1f\x8b")
    with pytest.raises(DamagedData, match=f"; remove {folder} to download it again$"):
        load(small)
    shutil.copytree(folder, tmp_path / "elsewhere")
    with pytest.raises(DamagedData) as caught:
        load(small, tmp_path / "elsewhere")
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("small", ["mnist"], indirect=True)
def test_a_download_does_not_wait_for_one_of_another_set(small, monkeypatch, tmp_path):
    homes = homes_of(small.published.files, [f"{small.folder.as_uri()}/"], None)
    monkeypatch.setattr("fastcifar.data.files.homes_of", lambda *_: homes)
    cache = tmp_path / "xdg-cache" / "fastcifar"
    locks = [".download.lock", ".cifar-10-batches-bin.download.lock", "svhn/.download.lock"]
    with contextlib.ExitStack() as stack:
        assert all(stack.enter_context(claimed(cache / lock)) for lock in locks)
        assert_same(load(small), small)
