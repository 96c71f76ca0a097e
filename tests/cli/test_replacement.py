"""Hidden units that begin again, and layer norm, from the command line."""

import json

import pytest

from fastcifar.cli import main

DATA = ["--dataset", "synthetic", "--train-size", "128", "--device", "cpu"]
SMALL = ["--recipe", "warmstart-mlp", "--network.hidden", "8", "--epochs", "2", "--batch-size", "32", "--quiet"]
METHODS = {
    "redo": ["--redo.every", "1", "--redo.threshold", "0.99"],
    "continual backprop": ["--continual-backprop.rate", "0.1", "--continual-backprop.maturity", "2"],
}


def losses(folder):
    return [row["train_loss"] for row in json.loads((folder / "run.json").read_text())["history"]]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each(method, tmp_path):
    for name, words in (("on", METHODS[method]), ("again", METHODS[method]), ("off", [])):
        words = [*words, "--network.norm", "layer"]
        assert main(["train", *SMALL, *DATA, *words, "--out", str(tmp_path / name)]) == 0
    assert losses(tmp_path / "on") == losses(tmp_path / "again") != losses(tmp_path / "off")
    assert main(["eval", str(tmp_path / "on"), "--device", "cpu"]) == 0


def test_what_does_not_go_together_is_one_line(tmp_path, capsys):
    words = ["--network", "mlp", "--redo.every", "1", "--freeze", "backbone", "--out", str(tmp_path / "out")]
    assert main(["train", *DATA, *words]) != 0
    told = capsys.readouterr().err
    assert told == "fastcifar: redo.every is 1, and freeze is backbone; allowed: with it freeze none\n"
    assert not (tmp_path / "out").exists()
    joint = [
        "--batch-size",
        "32",
        "--network",
        "resnet18-interpolation",
        "--network.width",
        "4",
        "--redo.every",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["train", *DATA, *joint]) != 0
    assert "no hidden units of InterpolationNet are known" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
