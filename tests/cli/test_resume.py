"""`fastcifar train --resume`: a training goes on after a kill at any instant, to what it would have come to.

What is on the disk at the instant of a kill is a copy of the folder, made in the midst of a training."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastcifar.cli import main
from fastcifar.errors import NonFiniteLoss, OutOfMemory
from fastcifar.output import PARTIAL, claimed
from fastcifar.training import Trainer
from fastcifar.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("few_images")

MLP = ["train", "--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--quiet"]
MLP += ["--batch-size", "64", "--epochs", "2"]
TIMES = {"seconds", "train_seconds", "time_seconds", "process_seconds", "phases", "first_step_seconds"}
TIMES |= {"images_per_second", "started", "command", "resumed"}


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def kept(folder):
    """All that is kept in a folder by the names of files, but for times. A lock file that is left behind is no lock."""
    found = {}
    for path in sorted(Path(folder).rglob("[!.]*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays}
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            lines = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
            found[name] = sorted(lines, key=lambda line: line["seed"])
        else:
            found[name] = ""
    return found


@pytest.fixture
def killed(monkeypatch, tmp_path):
    """Copies of the folder `run` at every step of a training and around every file that is put in its place."""
    copies, seen, step, replace, unlink = [], [], Trainer.take_step, os.replace, Path.unlink

    def copy():
        files = {(path, path.stat().st_mtime_ns) for path in Path("run").rglob("[!.]*")}
        if Path("run").is_dir() and files not in seen[-1:]:
            seen.append(files)
            copies.append(f"killed-{len(copies)}")
            shutil.copytree("run", copies[-1])

    def around(call):
        def called(*args, **kwargs):
            copy()
            call(*args, **kwargs)
            copy()

        return called

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", around(step))
        patch.setattr("fastcifar.output.os.replace", around(replace))
        patch.setattr(Path, "unlink", around(unlink))
        yield copies, patch.undo


def in_order(args):
    return [*MLP, *args, "--out", "run"]


@pytest.mark.parametrize(
    "args",
    [
        ["--checkpoint-every", "0.5", "--keep-weights", "all", "--evaluate-at-start"],
        ["--runs", "2", "--epochs", "1", "--checkpoint-every", "0.5", "--keep-weights", "all"],
    ],
    ids=["one", "several"],
)
def test_a_training_goes_on_after_a_kill_at_any_instant(killed, args):
    copies, undo = killed
    assert main(in_order(args)) == 0
    undo()
    expected = kept("run")
    resumed = set()
    for folder in copies:
        held = {path.name for path in Path(folder).iterdir()}
        if not held & {"unfinished.json", "run.json", "runs.jsonl"}:
            assert all(name.startswith(PARTIAL) for name in held)  # nothing had begun
            continue
        assert main(["train", "--resume", folder, "--quiet"]) == 0
        assert kept(folder) == expected
        resumed |= set(json.loads(next(Path(folder).rglob("run.json")).read_text())["resumed"])
    assert {2, 4} <= resumed
