"""The short form of `make reliability`: a training is killed twice, and what is compared would show a difference."""

import json

import pytest

from tests.reliability import faults, kills
from tests.reliability.trainings import Ended, same


def test_a_training_that_is_killed_ends_as_if_nothing_had_happened(tmp_path):
    found = kills.kill(tmp_path, 2, seed=1, kinds=("everything",))
    assert found.faults == [] and found.kills >= 2 and found.finished >= 1


def test_a_difference_is_seen(tmp_path):
    training = kills._training(tmp_path / "run", "everything")
    training.folder.mkdir()
    (training.folder / "run.json").write_text(json.dumps({"accuracy": 0.5, "train_seconds": 1.0, "history": []}))
    (training.folder / "model.safetensors").write_bytes(b"weights")
    made = training.made()
    (training.folder / "run.json").write_text(json.dumps({"accuracy": 0.5, "train_seconds": 2.0, "history": []}))
    assert same(training.made(), made) == []
    (training.folder / "run.json").write_text(json.dumps({"accuracy": 0.6, "train_seconds": 1.0, "history": []}))
    (training.folder / "model.safetensors").write_bytes(b"Weights")
    assert same(training.made(), made) == ["model.safetensors", "run.json"]


@pytest.mark.parametrize(
    ("ended", "is_clear"),
    [
        (Ended(2, "", "fastcifar: cannot write run: No space left on device\n"), True),
        (Ended(1, "", "Traceback (most recent call last):\n  ...\nOSError\n"), False),
        (Ended(-9, "", ""), False),
    ],
)
def test_a_traceback_and_a_crash_are_faults(ended, is_clear):
    found = faults.Faults()
    found.note("a fault", ended, is_kept=True)
    assert (found.clear == 1, found.faults == []) == (is_clear, is_clear)
