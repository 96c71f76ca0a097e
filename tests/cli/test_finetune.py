"""`fastcifar finetune`."""

import json

import pytest

from fastcifar.cli import main

DATA = ["--dataset", "synthetic", "--train-size", "128", "--device", "cpu"]
SMALL = ["--recipe", "warmstart-mlp", "--network.hidden", "8", "--epochs", "1", "--batch-size", "32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *SMALL, *DATA, "--normalize.mean", "100", "110", "120", "--quiet", "--out", str(folder)]) == 0
    return folder


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_s_classifier_is_trained_alone_and_the_run_is_whole(run, tmp_path, capsys):
    out, words = tmp_path / "out", ["--freeze", "backbone", "--frozen-mode", "once", "--epochs", "3", "--keep", "best"]
    assert main(["finetune", "--weights", str(run), *DATA, *words, "--holdout", "100", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "is kept" in told.err and "frozen all but classifier" in told.out
    found = record(out)
    assert found["recipe"]["network"]["hidden"] == [8]
    assert found["dataset"]["mean"] == [100, 110, 120]
    assert [row["epoch"] for row in found["history"]] == [0, 1, 2, 3]
    assert found["init"]["reset_head"] is None
    assert found["accuracy"] == max(row["test_accuracy"] for row in found["history"][1:])
    assert main(["eval", str(out), "--device", "cpu"]) == 0
    assert f"the run said {found['accuracy']:.2%}" in capsys.readouterr().out


def test_what_the_user_says_of_the_normalization_wins(run, tmp_path):
    out = tmp_path / "out"
    words = ["--recipe", "finetune-adam", "--normalize.std", "50", "60", "70", "--reset-head", "--quick", "--quiet"]
    assert main(["finetune", "--weights", str(run), *DATA, *words, "--out", str(out)]) == 0
    found = record(out)
    assert (found["dataset"]["mean"], found["dataset"]["std"]) == ([127.5] * 3, [50, 60, 70])
    assert found["init"]["reset_head"] is True
    assert found["recipe"]["network"]["hidden"] == [8]  # --quick leaves the network, whose weights are given


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--weights is not given; allowed: a saved run, a file, or torchvision:IMAGENET1K_V1"),
        (["--weights", "nowhere"], "nowhere does not exist"),
        (["--weights", "torchvision:V9"], "there are no weights 'torchvision:V9'; allowed: torchvision:IMAGENET1K_V1"),
        (["--weights", "RUN", "--warm-start", "x"], "unknown flag --warm-start"),
        (["--weights", "RUN", "--resize", "40"], "of images of 32 pixels, and these have 40; allowed: --resize 32"),
        (["--resume", "a"], "finetune has no --resume; allowed: fastcifar train --resume a goes on with it"),
        (["--weights", "RUN", "--freeze", "top"], "freeze is 'top'; allowed: none, backbone or 1, 2, ..."),
        (
            ["--weights", "RUN", "--keep", "best", "--eval-every", "0"],
            "--keep is 'best'; allowed: last with --eval-every 0",
        ),
        (
            ["--weights", "RUN", "--freeze", "backbone", "--frozen-mode", "once", "--augment.crop", "4"],
            "augment.crop is 4 with frozen_mode once; allowed: 0",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(run, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", *(word.replace("RUN", str(run)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_was_broken_off_goes_on_as_a_training(run, tmp_path, monkeypatch, capsys):
    from fastcifar.cli import screen

    words = ["--weights", str(run), *DATA, "--epochs", "3", "--batch-size", "32", "--keep", "best", "--holdout", "100"]
    assert main(["finetune", *words, "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    epoch, out = screen.Screen.epoch, tmp_path / "broken"

    def stop(self, row):
        epoch(self, row)
        if row.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(screen.Screen, "epoch", stop)
    assert main(["finetune", *words, "--out", str(out), "--checkpoint-every", "1"]) == 130
    monkeypatch.undo()
    assert f"fastcifar train --resume {out} goes on" in capsys.readouterr().err
    assert main(["train", "--resume", str(out)]) == 0
    whole, resumed = (record(folder) for folder in (tmp_path / "whole", out))
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["best_epoch"] == whole["best_epoch"]


def test_the_help_speaks_of_its_own_flags_alone(capsys):
    assert main(["finetune", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--freeze none|backbone|N" in text and "--warm-start" not in text
    assert "for --resume" not in text


def test_images_are_brought_to_the_side_of_the_weights_where_their_network_takes_one(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", *SMALL, *DATA, "--resize", "16", "--quiet", "--out", str(first)]) == 0
    words = ["--freeze", "1", "--epochs", "1"]
    assert main(["finetune", "--weights", str(first), *DATA, *words, "--out", str(second)]) == 0
    assert record(second)["dataset"]["side"] == 16
    assert "frozen up to hidden.0" in capsys.readouterr().out
