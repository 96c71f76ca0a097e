"""The programs of examples/, in their small form."""

import csv
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run_program(monkeypatch, capsys, tmp_path):
    """Runs a program of examples/ in an empty folder and returns what it prints."""

    def run(path, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        runpy.run_path(str(EXAMPLES / path), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_homework(run_program, tmp_path):
    pytest.importorskip("matplotlib")
    shown = run_program("course/homework.py", "--scale", "small", "--out", "out")
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    for name, theirs in (("lenet", "38.6%"), ("alexnet", "76.79%"), ("resnet18", "88.64%")):
        assert theirs in rows[name]
        epochs = list(csv.DictReader((tmp_path / "out" / f"{name}.csv").open()))
        assert [epoch["epoch"] for epoch in epochs] == ["1"]
        assert f"{float(epochs[0]['val_acc']):.2f}%" in rows[name]
    rates = ("1e-05", "0.0001", "0.0003", "0.001", "0.003")
    assert [f"optimizer.lr={rate}" in rows for rate in rates] == [True] * 5
    assert {"1", "2"} <= set(rows)  # batch sizes
    header, *lines = csv.reader((tmp_path / "out" / "submission.csv").open())
    assert header == ["Id", "Category"]
    assert [number for number, _ in lines] == [str(number) for number in range(50)]
    assert {category for _, category in lines} <= set("0123456789")
    figures = ("losses", "accuracies", "predictions", "sweep/losses", "sweep/accuracies", "sweep/seconds")
    assert [figure for figure in figures if not (tmp_path / "out" / f"{figure}.png").is_file()] == []


def test_the_tutorial(run_program):
    shown = run_program("transfer/tutorial.py", "--scale", "small")
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    theirs = ("finetune-sgd", "78.90%", "31m43s"), ("finetune-adam", "80.49%", "31m9s")
    theirs += ("extract-sgd", "46.44%", "8m6s"), ("extract-adam", "46.43%", "7m59s")
    for name, *figures in theirs:
        assert set(figures) <= set(rows[name])
        assert ("classifier" in rows[name]) == name.startswith("extract")
        assert 0 <= float(rows[f"{name}:"][1].rstrip("%")) <= 100
