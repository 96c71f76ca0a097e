"""SIGINT, SIGTERM and SIGHUP: a training ends at the end of a step and says how to go on; nothing else waits."""

import errno
import itertools
import os
import signal
from pathlib import Path

import pytest

import fastcifar.data
from fastcifar.cli import main
from fastcifar.locks import claimed
from fastcifar.signals import SIGNALS, Interrupted
from fastcifar.training import Trainer
from fastcifar.training.scoring import Scoring
from tests.cli.test_resume import MLP, kept

pytestmark = pytest.mark.usefixtures("few_images")

EXIT = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
BY = {"SIGINT": "interrupted", "SIGTERM": "interrupted by SIGTERM", "SIGHUP": "interrupted by SIGHUP"}


@pytest.fixture(autouse=True)
def usual_handlers():
    """Tests that are started in the background of a shell inherit that signals are ignored."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in EXIT}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def comes(monkeypatch, names, where, at=1, owner=Trainer):
    """Let the signals `names` come at the end of the call number `at` of the method `where`."""
    real, count = getattr(owner, where), itertools.count(1)

    def called(*args, **kwargs):
        found = real(*args, **kwargs)
        if next(count) == at:
            for name in names:
                signal.raise_signal(getattr(signal, name))
        return found

    monkeypatch.setattr(owner, where, called)


@pytest.mark.parametrize(("name", "step"), [("SIGINT", 3), ("SIGTERM", 4), ("SIGHUP", 2)])
def test_a_training_finishes_its_step_and_says_how_to_go_on(capsys, monkeypatch, name, step):
    assert main([*MLP, "--keep-weights", "all", "--out", "whole"]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        comes(patch, [name], "take_step", at=step)
        assert main([*MLP, "--keep-weights", "all", "--out", "run"]) == EXIT[name]
    said = f"fastcifar: {BY[name]} after step {step} of 8; fastcifar train --resume run goes on\n"
    assert capsys.readouterr() == ("", said)
    assert [path.name for path in Path("run/checkpoints").iterdir()] == [f"step-{step:08}.pt"]
    assert main([*MLP, "--out", "run"]) == 2
    said = (
        "output folder run holds an unfinished run; allowed: fastcifar train --resume run, or a new or an empty folder"
    )
    assert capsys.readouterr().err == f"fastcifar: {said}\n"
    assert main(["train", "--resume", "run", "--quiet"]) == 0
    assert kept("run") == kept("whole")


@pytest.mark.parametrize(("name", "where"), [("SIGINT", "load"), ("SIGTERM", "rehearse"), ("SIGHUP", "load")])
def test_where_nothing_is_trained_yet_it_leaves_at_once_without_a_trace(capsys, monkeypatch, tmp_path, name, where):
    comes(monkeypatch, [name], *(["load_dataset", 1, fastcifar.data] if where == "load" else [where]))
    assert main([*MLP, "--out", "new/run"]) == EXIT[name]
    assert capsys.readouterr() == ("", f"fastcifar: {BY[name]}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_leaves_at_once(capsys, monkeypatch, tmp_path):
    comes(monkeypatch, ["SIGINT", "SIGTERM"], "take_step", at=3)
    assert main([*MLP, "--checkpoint-every", "0.25", "--out", "run"]) == 130
    assert capsys.readouterr().err == "fastcifar: interrupted; fastcifar train --resume run goes on\n"
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["step-00000001.pt", "step-00000002.pt"]
    with claimed(tmp_path / "run/.partial-lock") as is_free:
        assert is_free


def test_a_process_of_a_group_is_told_twice_and_still_finishes_its_step():
    with SIGNALS.taken():
        SIGNALS.is_patient = SIGNALS.is_held = True
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert SIGNALS.number == signal.SIGTERM
        SIGNALS.is_held = False
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_in_the_final_evaluation_the_run_is_finished_and_others_wait(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        comes(patch, ["SIGTERM"], "last", owner=Scoring)
        assert main([*MLP, "--out", "one"]) == 0
        assert {path.name for path in Path("one").iterdir()} >= {"run.json", "model.safetensors"}
        capsys.readouterr()
    with monkeypatch.context() as patch:
        comes(patch, ["SIGTERM"], "last", owner=Scoring)
        assert main([*MLP, "--runs", "2", "--out", "two"]) == 143
    said = "interrupted by SIGTERM; 1 finished run is kept in two; fastcifar train --resume two goes on"
    assert capsys.readouterr() == ("", f"fastcifar: {said}\n")
    assert main(["train", "--resume", "two", "--quiet"]) == 0
    assert "  n=2  " in capsys.readouterr().out


def test_without_checkpoints_nothing_is_kept(capsys, monkeypatch, tmp_path):
    comes(monkeypatch, ["SIGTERM"], "take_step", at=3)
    assert main([*MLP, "--checkpoint-every", "never", "--out", "run"]) == 143
    said = "interrupted by SIGTERM after step 3 of 8; nothing is kept, as --checkpoint-every is never"
    assert capsys.readouterr().err == f"fastcifar: {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_written_is_said(capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    comes(monkeypatch, ["SIGTERM"], "take_step", at=3)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([*MLP, "--out", "run"]) == 143
    said = "cannot write run/checkpoints/step-00000003.pt: No space left on device"
    assert capsys.readouterr().err == f"fastcifar: interrupted by SIGTERM after step 3 of 8; {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_ends_at_once_and_says_what_it_keeps(capsys, monkeypatch):
    comes(monkeypatch, ["SIGTERM"], "take_step", at=13)
    compare = ["compare", "warmstart-mlp", "warmstart-mlp", "--dataset", "synthetic", "--batch-size", "64"]
    assert main([*compare, "--epochs", "1", "--runs", "3", "--holdout", "64", "--quiet", "--out", "kept"]) == 143
    said = "4 finished runs are kept in kept; the same command goes on"
    assert capsys.readouterr().err == f"fastcifar: interrupted by SIGTERM; {said}\n"


def test_signals_that_are_ignored_stay_so_and_a_programs_own_too(monkeypatch):
    heard = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    own = signal.signal(signal.SIGTERM, lambda *_: heard.append("own"))
    before = [signal.getsignal(getattr(signal, name)) for name in EXIT]
    with SIGNALS.taken():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert heard == ["own"] and own == signal.SIG_DFL
    assert [signal.getsignal(getattr(signal, name)) for name in EXIT] == before
