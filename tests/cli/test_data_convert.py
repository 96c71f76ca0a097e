"""`fastcifar data convert`: what is written is read by other libraries and by `load_dataset`, whole or not at all."""

import dataclasses
import importlib.util
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fastcifar.data
from fastcifar.cli import main
from fastcifar.data import load_dataset
from fastcifar.data.dataset import fingerprint
from fastcifar.data.tfrecord import read_records
from fastcifar.locks import claimed
from tests.cli.test_data import dataset, images

HDF5 = pytest.mark.skipif(
    not (importlib.util.find_spec("h5py") and importlib.util.find_spec("fastcifar.data.hdf5")), reason="needs h5py"
)
FORMS = {"npz": "out.npz", "hdf5": "out.h5", "tfrecord": "out"}
each_form = pytest.mark.parametrize("form", ["npz", pytest.param("hdf5", marks=HDF5), "tfrecord"])


def without_training(made):
    train = made.train.subset(torch.arange(0))
    return dataclasses.replace(made, train=train, sha256=fingerprint(train, made.test))


KINDS = {
    "plain": lambda: dataset(classes=["a cat", "b/ü\t", ""], mean=(1, 2.5, 3), std=(4, 5, 6)),
    "three splits": lambda: dataset(y_test=None, x_val=images(5), y_val=np.array([0, -1, 2, 1, -1])),
    "test only": lambda: without_training(dataset()),
    "not square": lambda: dataset(x=images(12, 4, 6), x_test=images(3, 4, 6)),
}


@pytest.fixture
def given(monkeypatch, tmp_path):
    """Runs the command on a data set, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))

    def run(made, form, *words):
        monkeypatch.setattr(fastcifar.data, "load_dataset", lambda *_, **__: made)
        return main(["data", "convert", "--to", form, FORMS[form], *words])

    return run


def stored(form, shape):
    """What other readers find at the output of a form: the images and labels by split."""
    names = "train", "val", "test"
    if form == "npz":
        with np.load("out.npz") as file:
            return {
                each: (file[f"{each}_images"], file[f"{each}_labels"]) for each in names if f"{each}_images" in file
            }
    if form == "hdf5":
        import h5py

        with h5py.File("out.h5") as file:
            parts = [each for each in names if f"images-{each}" in file]
            assert all(
                file[f"images-{each}"].id.get_offset() for each in parts
            )  # in one piece, so that it can be mapped
            return {each: (file[f"images-{each}"][:], file[f"labels-{each}"][:]) for each in parts}
    paths = {each: Path(f"out/{each}.tfrecord") for each in names}
    splits = {each: read_records(path, shape) for each, path in paths.items() if path.exists()}
    return {each: (split.images.numpy(), split.labels.numpy()) for each, split in splits.items()}


@each_form
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_the_same_for_every_reader(given, capsys, form, kind):
    made = KINDS[kind]()
    assert given(made, form) == 0
    size = sum(path.stat().st_size for path in Path.cwd().rglob("out*") if path.is_file()) or sum(
        path.stat().st_size for path in Path("out").iterdir()
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"wrote {FORMS[form]}: {size:,} bytes in ")
    word = lines[-1].split()[1]
    found = load_dataset(word)
    for name in ("classes", "mean", "std", "sha256"):
        assert getattr(found, name) == getattr(made, name)
    splits = {each: getattr(made, each) for each in ("train", "val", "test")}
    splits = {each: split for each, split in splits.items() if split is not None and len(split)}
    there = stored(form, tuple(made.test.images.shape[1:]))
    assert there.keys() == splits.keys()
    for each, split in splits.items():
        for pixels, labels in (there[each], [getattr(getattr(found, each), name) for name in ("images", "labels")]):
            assert np.array_equal(pixels, split.images.numpy()) and np.array_equal(labels, split.labels.numpy())
    assert {path.name for path in Path.cwd().iterdir()} == {FORMS[form]}


@each_form
def test_what_is_there_is_replaced_with_force_alone(given, capsys, form):
    assert given(KINDS["three splits"](), form) == 0
    made = dataset()
    assert given(made, form) == 2
    assert "exists; allowed: another name, or --force" in capsys.readouterr().err
    assert given(made, form, "--force") == 0
    found = load_dataset(f"./{FORMS[form]}")
    assert (found.sha256, found.val) == (made.sha256, None)
    assert form != "tfrecord" or {*os.listdir("out")} == {"train.tfrecord", "test.tfrecord", "dataset.json"}


def changed(split):
    pixels = split.images.clone()
    pixels[-1, 0, 0, 0] ^= 1
    return dataclasses.replace(split, images=pixels)


FAILURES = {
    "other pixels": lambda patch, form: (
        patch("read_records", lambda *args: changed(read_records(*args)))
        if form == "tfrecord"
        else patch("load_dataset", lambda *args: (read := load_dataset(*args)) and read_with(read))
    ),
    "an interruption": lambda patch, form: patch("read_records" if form == "tfrecord" else "load_dataset", interrupted),
    "no room": lambda patch, form: patch("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1)),
    "a full disk": lambda patch, form: resource.setrlimit(resource.RLIMIT_FSIZE, (500, LIMIT[1])),
}


def read_with(read):
    return dataclasses.replace(read, test=changed(read.test))


def interrupted(*_):
    raise KeyboardInterrupt


LIMIT = resource.getrlimit(resource.RLIMIT_FSIZE)


@pytest.fixture
def limit():
    """Takes back a limit on the size of files, a write beyond which fails as on a full disk."""
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, LIMIT)


@each_form
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("before", [True, False])
def test_a_failure_leaves_what_was_there(given, capsys, monkeypatch, limit, form, failure, before):
    made = dataset()
    if before:
        assert given(made, form) == 0
    files = {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}
    FAILURES[failure](lambda name, value: monkeypatch.setattr(f"fastcifar.data.write.{name}", value), form)
    assert given(dataset(), form, "--force") == (130 if failure == "an interruption" else 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, LIMIT)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()} == files
    assert before or not list(Path.cwd().iterdir())


@HDF5
def test_many_classes_and_names_that_hdf5_has_not(given, capsys):
    made = dataset(classes=[f"class {number}" for number in range(5_000)])
    assert given(made, "hdf5") == 0
    assert load_dataset("./out.h5").classes == made.classes
    for name in ("a\0b", "\udc80"):
        assert given(dataset(classes=["a", "b", name]), "hdf5", "--force") == 2
        assert "cannot write the classes' names to out.h5: " in capsys.readouterr().err
    assert load_dataset("./out.h5").classes == made.classes


def test_a_name_that_numpy_cuts_is_not_lost_in_silence(given, capsys):
    assert given(dataset(classes=["a", "b", "c\0"]), "npz") == 2
    assert "out.npz would not hold classes as they are" in capsys.readouterr().err
    assert not os.path.exists("out.npz")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tfrecord a.npz", "OUT is a.npz, a file; allowed: a folder"),
        ("npz b.npz", "OUT is b.npz, a folder; allowed: a file"),
        ("tfrecord b.npz", "b.npz exists; allowed: another name, or --force, which replaces it"),
    ],
)
def test_what_is_of_another_kind_is_not_replaced(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    Path("a.npz").touch()
    Path("b.npz/inside").mkdir(parents=True)
    assert main(["data", "convert", "--to", *words.split()]) == 2
    assert said in capsys.readouterr().err


@each_form
def test_what_a_killed_conversion_left_is_no_obstacle_and_is_removed(given, form):
    Path("out").mkdir()
    Path("out/.partial-x.tfrecord").touch()  # as older versions left them
    for name in (f".partial-{FORMS[form]}", ".partial-other.npz", ".partial-other.npz.lock", ".partial-mine"):
        Path(name).touch()
    made = dataset()
    assert given(made, form) == 0
    assert load_dataset(f"./{FORMS[form]}").sha256 == made.sha256
    assert {*os.listdir()} == {"out", FORMS[form], ".partial-mine"}  # which has no lock: of something else
    if form == "tfrecord":  # killed between the two renames
        Path("out").rename(".replaced-out")
        assert given(dataset(), form) == 0 and {*os.listdir()} == {"out", ".partial-mine"}


def test_two_conversions_do_not_write_to_one_file(given, capsys):
    with claimed(Path(".partial-out.npz.lock")):
        assert given(dataset(), "npz") == 2
    assert "another process writes to out.npz; allowed: to wait until it is done" in capsys.readouterr().err


def test_a_folder_with_other_files_is_not_replaced(given, capsys):
    Path("out").mkdir()
    Path("out/letter.txt").touch()
    assert given(dataset(), "tfrecord", "--force") == 2
    assert "out holds 'letter.txt'; allowed: an empty folder, or one with nothing but" in capsys.readouterr().err
    assert os.listdir("out") == ["letter.txt"]


@each_form
def test_permissions_and_links_stay(given, form):
    name = FORMS[form]
    assert given(dataset(), form) == 0
    Path("there").mkdir()
    Path(name).rename(f"there/{name}")
    Path(f"there/{name}").chmod(0o750)
    Path(name).symlink_to(f"there/{name}")
    made = dataset()
    assert given(made, form, "--force") == 0
    assert Path(name).is_symlink() and Path(f"there/{name}").stat().st_mode & 0o777 == 0o750
    assert load_dataset(f"./{name}").sha256 == made.sha256
