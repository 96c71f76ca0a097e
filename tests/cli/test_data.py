"""`fastcifar data list`, `info` and `verify`."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch

import fastcifar.data
from fastcifar.catalogue import DATASETS, DatasetEntry
from fastcifar.cli import main
from fastcifar.data import Dataset, DownloadError
from fastcifar.errors import DamagedData, UserError

RANDOM = np.random.default_rng(11)


def images(count, height=4, width=4):
    return RANDOM.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def dataset(**changes):
    """Twelve training images of three classes, three to test on."""
    arrays = {"x": images(12), "y": np.arange(12) % 3, "x_test": images(3), "y_test": np.arange(3), **changes}
    return Dataset.from_arrays(**arrays)


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Makes commands find a data set, or an error, in place of what they load; a file "mine" is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()

    def give(found):
        def load(*_, **__):
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(fastcifar.data, "load_dataset", load)

    return give


@pytest.fixture
def catalogue(monkeypatch, tmp_path):
    """A catalogue of two sets, "here" and "gone", whose files are looked for in an empty folder."""
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    for name in list(DATASETS):
        monkeypatch.delitem(DATASETS._values, name)
    entry = DatasetEntry("a set", "nowhere:load", classes=7, images=(1_000, 0), side=9, files=(("a.gz",), ("a",)))
    entry = dataclasses.replace(entry, variants={"few": 2}, extra="mat", folders=("A",))
    monkeypatch.setitem(DATASETS._values, "here", entry)
    monkeypatch.setitem(
        DATASETS._values, "gone", dataclasses.replace(entry, files=(("b", "c"),), extra="", variants={})
    )
    monkeypatch.setitem(DATASETS._values, "cifar10", DatasetEntry("made in memory", "nowhere:load"))
    return tmp_path


@pytest.mark.parametrize("place", ["a.gz", "a/", "A/a.gz", "."])
def test_list_says_which_sets_are_here(catalogue, capsys, monkeypatch, place):
    path = catalogue / place
    if place == ".":  # the folder that is named is the set itself
        path = catalogue / "a"
        monkeypatch.setenv("FASTCIFAR_DATA", str(path))
    path.mkdir() if place.endswith(("/", ".")) else (path.parent.mkdir(exist_ok=True), path.touch())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["data", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines.pop(0)[:3] == ["looked", "for", "in"] and not lines.pop(0)
    (catalogue / "b").touch()  # half of what "gone" needs
    lack = ["needs", "pip", "install", "'fastcifar[mat]'"]
    assert lines[1] == ["here", "1,000", "-", "9", "7", f"{path};", *lack]
    assert lines[2] == ["also", "here:few", "(2", "classes)"]
    assert lines[3][:7] == ["gone", "1,000", "-", "9", "7", "not", "there"]
    assert lines[4][:5] == ["cifar10", "-", "-", "-", "-"]
    assert main(["data", "list", "--json"]) == 0
    here, gone, _ = json.loads(capsys.readouterr().out)
    assert (here["path"], gone["path"], here["extra_is_installed"]) == (str(path), None, False)
    assert (here["train_size"], here["variants"], here["side"]) == (1_000, {"few": 2}, 9)


def test_list_says_what_the_first_use_downloads(catalogue, capsys, monkeypatch):
    monkeypatch.delenv("FASTCIFAR_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(catalogue))
    monkeypatch.setitem(DATASETS._values, "gone", dataclasses.replace(DATASETS["gone"], megabytes=1_234))
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"looked for in {catalogue}/fastcifar\n")
    assert out.count("not there") == 2 and "not there: the first use downloads 1,234 MB\n" in out


def test_the_catalogue_names_the_files_that_loaders_look_for():
    from fastcifar.data import releases

    for each in vars(releases).values():
        if isinstance(each, releases.Release) and each.name in DATASETS:
            names = {name for archive in each.archives for name in (archive.folder, archive.filename)}
            assert {name for form in DATASETS[each.name].files for name in form} == {*names, f"{each.name}.npz"}
            assert DATASETS[each.name].images == (sum(each.records[:-1]), each.records[-1])
            assert DATASETS[each.name].classes == len(each.classes)
        elif isinstance(each, releases.Published) and each.name in DATASETS:
            entry = DATASETS[each.name]
            assert entry.files[0] == tuple(file.filename for file in each.files)
            assert (entry.folders, entry.images[1]) == (each.folders, each.records[-1])
            assert (entry.images[0], entry.classes) == (sum(each.records[:-1]), len(each.classes))


def test_info_says_what_is_in_every_split(given, capsys):
    grey = RANDOM.integers(0, 256, (6, 2, 5), dtype=np.uint8)
    val = np.array([2, -1, 0, -1])
    given(dataset(x=grey, y=np.arange(6) % 3, x_test=grey[:2], y_test=None, x_val=grey[:4], y_val=val))
    assert main(["data", "info", "--dataset", "./mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("6 training, 4 validation and 2 test images, 2 x 5, grey")
    assert lines[2] == "without a label: 2 of test, 2 of val"
    assert [line.split() for line in lines[-4:]] == [
        ["label", "class", "train", "val", "test"],
        *([str(label), str(label), "2", str(count), "0"] for label, count in enumerate([1, 0, 1])),
    ]
    assert main(["data", "info", "--dataset", "./mine", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["grey"], facts["bytes"]) == (True, 12 * (2 * 5 * 3 + 8))
    assert facts["unlabeled"] == {"train": 0, "test": 2, "val": 2}


def test_info_of_a_set_with_test_images_only_and_many_classes(given, capsys):
    made = dataset(classes=[f"class {number}" for number in range(300)])
    given(dataclasses.replace(made, train=made.train.subset(torch.arange(0))))
    assert main(["data", "info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "0 training and 3 test images, 4 x 4, red green blue"
    assert lines[-1] == "... and 100 classes more; --json has all"
    assert lines[-2].split() == ["199", "class", "199", "0"]


X = images(12)
BLANK, TWICE = X.copy(), X.copy()
BLANK[7] = [3, 200, 9]
TWICE[8] = TWICE[2]
WRONG = {
    "one color": ({"x": BLANK}, "1 images of one color: image 7 (from 0)"),
    "in two splits": ({"x": X, "x_test": X[[4, 1, 2]]}, "3 images are in train too, to the last byte, 1 of them"),
    "no training images": ({"y": np.arange(12) % 2}, "12 images, 0 to 6 of each of 3 classes, none of 2"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_verify_finds_what_is_wrong(given, capsys, kind):
    changes, said = WRONG[kind]
    given(dataset(**changes))
    for name, status, word in (("./mine", 1, "wrong"), ("cifar10", 0, "note")):
        assert main(["data", "verify", "--json", "--dataset", name]) == status
        [result] = json.loads(capsys.readouterr().out)
        [found] = [each for each in result["findings"] if each["status"] != "ok"]
        assert found["status"] == word and found["found"].startswith(said)
        assert main(["data", "verify", "--dataset", name]) == status
        assert word in capsys.readouterr().out


def test_verify_counts_images_that_are_the_same(given, capsys):
    given(dataset(x=TWICE, x_val=TWICE[[8, 0]], y_val=np.array([0, 0]), x_test=TWICE[[0, 3, 8]]))
    assert main(["data", "verify", "--dataset", "./mine", "--json"]) == 1
    [result] = json.loads(capsys.readouterr().out)
    assert {name: split["repeated"] for name, split in result["splits"].items()} == {"train": 1, "val": 0, "test": 0}
    assert result["shared"] == {
        "train and val": {"images": 2, "other_labels": 1, "places": [[0, 2], [1, 0]]},
        "train and test": {"images": 3, "other_labels": 1, "places": [[0, 0], [1, 3], [2, 2]]},
        "val and test": {"images": 2, "other_labels": 1, "places": [[0, 1], [2, 0]]},
    }


def test_verify_finds_nothing_in_a_sound_set(given, capsys):
    given(dataclasses.replace(dataset(y_test=None), verified="its md5"))
    assert main(["data", "verify"]) == 0
    assert [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["ok", "files", "its md5"],
        ["ok", "train", "12 images, 4 of each of 3 classes"],
        ["ok", "test", "3 images, 0 of each of 3 classes, 3 unlabeled"],
        ["ok", "test", "no image is in train too, to the last byte"],
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DamagedData("a is damaged: it ends too early"), 1),
        (UserError("mirror is 'x'; allowed: an address"), 2),
        (UserError("data_dir a holds no CIFAR-10; looked for b"), 2),
        (UserError("reading a needs h5py; allowed: pip install 'fastcifar[hdf5]'"), 2),
        (DownloadError("http://a", "no network"), 2),
    ],
)
def test_a_damaged_set_is_a_finding_and_an_absent_one_a_mistake(given, capsys, error, status):
    given(error)
    assert main(["data", "verify"]) == status
    out, err = capsys.readouterr()
    assert str(error) in (" ".join(out.split()) if status == 1 else err)


def test_verify_of_all_takes_the_sets_that_are_here(catalogue, given, capsys):
    (catalogue / "a").touch()
    given(dataset())
    assert main(["data", "verify", "--all"]) == 0
    assert capsys.readouterr().out.startswith("here: arrays in memory\n")
    (catalogue / "a").unlink()
    assert main(["data", "verify", "--all"]) == 2
    assert "no data set is here" in capsys.readouterr().err


def test_verify_reads_files_again_whose_images_are_kept(tmp_path, monkeypatch, capsys):
    """A file that is damaged without another size or time, as by a disk: what was kept of it is read, and verify finds
    it."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fastcifar.data.converted.SLOW", 0)
    monkeypatch.setattr("fastcifar.data.folder.state_of", lambda status: (status.st_size, status.st_mtime_ns))
    for number, label in enumerate("aabbaabbaabb"):
        path = tmp_path / "set" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(images(1)[0]).save(path)
    words = ["data", "verify", "--dataset", str(tmp_path / "set")]
    before = fastcifar.data.load_dataset(words[-1])
    assert main(words) == 0
    status, size = path.stat(), path.stat().st_size
    path.write_bytes(bytes(size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fastcifar.data.load_dataset(words[-1]).sha256 == before.sha256
    capsys.readouterr()
    assert main(words) == 1
    assert capsys.readouterr().out.startswith(f"{tmp_path}/set: not read\nwrong files   {path}")


def test_verify_refuses_all_sets_together_with_one(capsys):
    assert main(["data", "verify", "--all", "--dataset", "svhn"]) == 2
    assert "--all is given with --dataset 'svhn'; allowed: one of them" in capsys.readouterr().err


def test_a_wrong_mirror_is_a_mistake_and_no_damage(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FASTCIFAR_DATA", raising=False)
    assert main(["data", "verify", "--mirror", "x"]) == 2
    assert "mirror is 'x'" in capsys.readouterr().err


def test_info_says_what_images_are_normalized_with(given, capsys):
    made = dataset(mean=(1, 2, 3), std=(4, 5, 6))
    given(made)
    assert main(["data", "info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("normalized with mean 1.00 2.00 3.00, standard deviation 4.00 5.00 6.00 of 255")
    pixels = made.train.images.double().numpy()
    mean = " ".join(f"{each:.2f}" for each in pixels.mean((0, 1, 2)))
    std = " ".join(f"{each:.2f}" for each in pixels.std((0, 1, 2)))
    assert lines[place + 1] == f"of the training images themselves, mean {mean}, standard deviation {std} of 255"
    given(dataset())
    assert main(["data", "info"]) == 0
    assert "themselves" not in capsys.readouterr().out
