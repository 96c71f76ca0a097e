"""Where runs are saved: a place is taken before the training, and what was trained is never lost."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fastcifar.cli import main
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.locks import claimed
from fastcifar.output import PARTIAL, RECORD, reserved
from fastcifar.training import load_run, train

pytestmark = pytest.mark.usefixtures("few_images")

TRAIN = ["train", "--dataset", "synthetic", "--batch-size", "64", "--epochs", "1", "--quiet"]
TRAIN += ["--network.widths", "8", "8", "8", "8"]
FILES = {"run.json", "log.tsv", "predictions.npz", "model.safetensors"}


@pytest.fixture
def never_trains(monkeypatch):
    def fail(*arguments):
        raise AssertionError("loaded before the output folder was taken")

    monkeypatch.setattr("fastcifar.data.load_dataset", fail)


@pytest.mark.parametrize("place", [".", "empty", "link", "deep/new", "../here/./new"])
def test_a_run_is_saved_into_whatever_folder_it_is(monkeypatch, tmp_path, place):
    (tmp_path / "here/empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/empty" if place == "." else tmp_path / "here")
    if place == "link":
        Path("link").symlink_to("empty")
    before = Path(place).resolve(), Path(place).is_symlink()
    assert main([*TRAIN, "--out", place]) == 0
    assert {path.name for path in Path(place).iterdir()} == FILES
    assert (Path(place).resolve(), Path(place).is_symlink()) == before
    load_run(place)


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize("runs", ["1", "2"])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("dangling", "output folder dangling cannot be made: File exists"),
        ("loop/run", "output folder loop/run cannot be made: "),
        ("/proc/run", "output folder /proc/run cannot be made: No such file or directory"),
        ("/sys/kernel", "output folder /sys/kernel "),
        ("file/run", "output folder file/run "),
    ],
)
def test_a_place_that_cannot_be_made_is_refused_before_anything_is_loaded(capsys, tmp_path, place, reason, runs):
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert main([*TRAIN, "--out", place, "--runs", runs]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"fastcifar: {reason}") and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"dangling", "loop", "file"}


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize("runs", ["1", "2"])
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_takes_no_file_is_refused_before_anything_is_loaded(capsys, monkeypatch, tmp_path, code, runs):
    def fail(*arguments, **options):  # a file system that is full or cannot be written: the superuser meets no other
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fastcifar.output.tempfile.NamedTemporaryFile", fail)
    assert main([*TRAIN, "--out", "new/run", "--runs", runs]) == 2
    said = f"fastcifar: output folder new/run cannot be written to: {os.strerror(code)}\n"
    assert capsys.readouterr() == ("", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [["--out", "deep/run"], []])
@pytest.mark.parametrize("runs", ["1", "2"])
def test_a_training_that_fails_leaves_no_folder_of_its_own(monkeypatch, tmp_path, out, runs):
    def fail(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastcifar.training.Trainer.run", fail)
    assert main([*TRAIN, *out, "--runs", runs]) == 130
    assert list(tmp_path.iterdir()) == []
    Path("deep/run").mkdir(parents=True)
    assert main([*TRAIN, *out, "--runs", runs]) == 130
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "run"]  # which were there before


def test_runs_of_one_second_have_a_folder_each(monkeypatch, tmp_path):
    monkeypatch.setattr("fastcifar.cli.train.time.strftime", lambda *form: "20260101-120000")
    for runs in ("1", "1", "2"):
        assert main([*TRAIN, "--runs", runs]) == 0
    name = "davidnet-20260101-120000-0"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {name, f"{name}-2", f"{name}-3"}
    assert {path.name for path in (tmp_path / f"runs/{name}-3").iterdir()} == {"runs.jsonl", "seed-0", "seed-1"}


def test_two_processes_of_one_second_both_keep_their_run(tmp_path):
    with reserved(tmp_path / "run", anew=True) as first, reserved(tmp_path / "run", anew=True) as second:
        assert (first.name, second.name) == ("run", "run-2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("never_trains")
def test_a_folder_that_another_process_trains_into_is_refused(capsys, tmp_path):
    with reserved(tmp_path / "run"):
        assert main([*TRAIN, "--out", "run"]) == 2
        assert capsys.readouterr().err == "fastcifar: another process trains into run; allowed: another folder\n"
        assert (tmp_path / "run").is_dir()


def test_what_a_killed_process_left_does_not_stand_in_the_way(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / f"run/{PARTIAL}lock").touch()
    assert main([*TRAIN, "--out", "run"]) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_a_lock_that_its_holder_has_just_given_up_is_not_held(monkeypatch, tmp_path):
    """Opened while another process held it, locked when that had removed it: a third process would make a new one."""
    fcntl = pytest.importorskip("fcntl")
    lock, real = tmp_path / "lock", fcntl.flock

    def late(file, how):
        lock.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claimed(lock) as is_ours:
        assert not is_ours


def full(monkeypatch, *folders):
    """From now on the disk of these folders is full (of all, where none is given)."""
    save = np.savez

    def savez(path, **arrays):
        if not folders or any(folder in Path(path).parts for folder in folders):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, **arrays)

    monkeypatch.setattr("numpy.savez", savez)


@pytest.mark.parametrize(
    ("full_folders", "kept_in"), [(["run"], "runs/davidnet-"), (["run", "runs"], "other/davidnet-")]
)
def test_a_run_that_cannot_be_saved_is_saved_elsewhere(capsys, monkeypatch, tmp_path, full_folders, kept_in):
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("fastcifar.cli.train.tempfile.gettempdir", lambda: "other")
    full(monkeypatch, *full_folders)
    assert main([*TRAIN, "--out", "run"]) == 2
    err = capsys.readouterr().err
    said, _, place = err.removesuffix(" instead\n").partition("; the run is saved in ")
    assert said == "fastcifar: cannot write run/predictions.npz: No space left on device"
    assert place.startswith(kept_in) and {path.name for path in Path(place).iterdir()} == FILES
    load_run(place)
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / place}
    assert not Path("run").exists()


def test_a_run_that_cannot_be_saved_anywhere_leaves_nothing(capsys, monkeypatch, tmp_path):
    full(monkeypatch)
    monkeypatch.setattr("fastcifar.cli.train.tempfile.gettempdir", lambda: "other")
    assert main([*TRAIN, "--out", "run"]) == 2
    assert capsys.readouterr().err == (
        "fastcifar: cannot write run/predictions.npz: No space left on device; the run cannot be saved elsewhere "
        "either, and is lost\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("late", ["predictions.npz", "model.safetensors", "run.json"])
def test_a_run_is_saved_whole_or_not_at_all(monkeypatch, tmp_path, late):
    """Whichever file cannot be put in its place."""
    assert main([*TRAIN, "--out", "first"]) == 0
    replace = os.replace

    def fails_late(source, target):
        assert not (Path(target).parent / RECORD).exists()  # it comes last
        if Path(target).name == late and "run" in Path(target).parts:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr("fastcifar.output.os.replace", fails_late)
    assert main([*TRAIN, "--out", "run"]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.name == "nt", reason="files have no mode")
@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_all_files_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        assert main([*TRAIN, "--out", "run", "--profile"]) == 0
        half = ["warm-start", "half", "--dataset", "synthetic", "--recipe", "warmstart-mlp", "--network.hidden", "8"]
        assert main([*half, "--epochs", "1", "--batch-size", "64", "--quiet", "--out", "kept"]) == 0
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {path.suffix for path in modes} >= {".json", ".npz", ".tsv", ".safetensors"}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o666 & ~mask}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~mask}


def test_the_library_refuses_in_one_line_what_cannot_be_saved(monkeypatch, tmp_path):
    run = train("warmstart-mlp", make_synthetic(train_size=256, test_size=64), epochs=1)
    (tmp_path / "file").touch()
    for place in ("file", "file/run", "/proc/run"):
        with pytest.raises(UserError, match=f"output folder {place} "):
            run.save(place)
    full(monkeypatch)
    with pytest.raises(UserError, match=r"cannot write deep/run/predictions\.npz: No space left on device"):
        run.save("deep/run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
