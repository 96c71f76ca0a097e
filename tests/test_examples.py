"""The programs of examples/, in their small form."""

import csv
import difflib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.kernels import winograd
from fastcifar.recipes import change, with_batch_size

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


WARM_START = runpy.run_path(str(EXAMPLES / "warm_start" / "notebooks.py"))


def test_the_notebooks_are_what_their_source_makes_and_differ_in_gaps_and_answers_alone():
    cells = {}
    for name, text in WARM_START["made"]().items():
        assert (EXAMPLES / "warm_start" / name).read_text(encoding="utf-8") == text, (
            "run examples/warm_start/notebooks.py"
        )
        cells[name] = json.loads(text)["cells"]
    gaps = answers = 0
    for solved, empty in zip(cells["solved.ipynb"], cells["gaps.ipynb"], strict=True):
        assert {**solved, "source": ""} == {**empty, "source": ""}
        if solved["cell_type"] == "markdown":
            answers += empty["source"] == ["*Your answer:*"] and len(solved["source"]) > 1
            assert solved == empty or empty["source"] == ["*Your answer:*"]
            continue
        compile("".join(empty["source"]), "gaps.ipynb", "exec")
        for line in difflib.ndiff(solved["source"], empty["source"]):
            if line.startswith("+ "):
                assert re.search(r" = \.\.\.(, \.\.\.)*  # TODO: ", line)
                gaps += 1
        assert not any("TODO" in line or "..." in line for line in solved["source"])
    assert (gaps, answers) == (15, 4)


def test_the_solved_notebook(monkeypatch, capsys, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setenv("SCALE", "small")
    names = WARM_START["run"]("small")
    loaders = names["get_cifar10_loaders"]
    for how, images, batches in (
        ({"use_half_train": True, "batch_size": 50}, 96, 2),
        ({"dataset_portion": 0.8, "batch_size": 50}, 154, 4),
        ({"dataset_portion": 0.8, "batch_size": 50, "drop_last": True}, 154, 3),
        ({}, 192, 2),
    ):
        train = loaders(**how)["train_loader"]
        assert (len(train.split), len(train), len(list(train))) == (images, batches, batches)
    assert sum(len(labels) for _, labels in loaders(batch_size=50, drop_last=True)["test_loader"]) == 60
    runs = json.loads((tmp_path / "out/runs.json").read_text())
    assert {title: found[2] for title, found in runs.items()} == {"half_cifar": 0, "warm_start": 1, "full_cifar": 1}
    assert all(len(found[0]) == len(found[1]) == 2 and found[0][0] == 0 for found in runs.values())
    assert all((tmp_path / f"out/fig1_{split}.pdf").is_file() for split in ("train", "test"))
    shown = capsys.readouterr().out
    for line in ("cifar100 resnet18 adam +41.4% +35.0% +6.4", "mlp Adam: shrink-perturb", "shrink-perturb: test"):
        assert re.search(line, shown)


def test_the_single_file_has_every_loss_of_its_recipe_to_the_last_bit(capsys, monkeypatch):
    monkeypatch.setattr(winograd, "_FEWEST", 0)  # the convolutions of a CPU, of so small batches too
    single = runpy.run_path(str(EXAMPLES / "speedrun94_single.py"))
    data, small = make_synthetic(200, 60), {"epochs": 4, "batch_size": 16, "dtype": "float32"}
    settings = single["Settings"](seed=3, widths=(16, 16, 16), keep_from=1, **small)
    changed = {"network.widths": settings.widths, "select.from_epoch": 1, **small}
    recipe = change(with_batch_size(fastcifar.get_recipe("speedrun94"), settings.batch_size), changed)
    losses = []

    class Noting(fastcifar.Trainer):
        def take_step(self, epoch):
            place = self.state.step - epoch.first_step
            super().take_step(epoch)
            losses.append(self.state.tensors.losses[place].item())

    run = Noting(recipe, data, "cpu").run(seed=3)
    with torch.random.fork_rng():
        network, found = single["train"](settings, data)
    assert len(losses) == 12 + 3 * 8  # images of 24, twice 28 and 32 pixels; 65% of them from 1 on
    assert found == losses
    weights = ([weight for weight in each.parameters() if weight.requires_grad] for each in (network, run.model))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))
    lines = capsys.readouterr().out.splitlines()[1:]
    rows = [[float(cell.rstrip("%")) for cell in line.split()[:4]] for line in lines]
    for row, theirs in zip(rows, run.record.history, strict=True):
        percents = [100 * theirs.train_accuracy, 100 * theirs.test_accuracy]
        assert row == pytest.approx([theirs.epoch, theirs.train_loss, *percents], abs=0.0051)
    assert single["evaluate"](network, data, settings, tta=True) == run.tta_accuracy


def test_the_single_file_as_a_program(run_program, monkeypatch):
    small = make_synthetic(200, 60)
    monkeypatch.setattr(fastcifar, "load_dataset", lambda name, device: small, raising=False)
    narrow = ("speedrun94_single.py", "--widths", "8", "8", "8")
    header, row, last = run_program(*narrow, "--batch-size", "32", "--steps", "2").splitlines()
    assert header.split() == ["epoch", "train", "loss", "train", "acc", "test", "acc", "seconds"]
    assert row.split()[0] == "1"
    assert re.fullmatch(r"test accuracy with test-time augmentation: \d+\.\d\d%", last)
    with pytest.raises(SystemExit, match=r"^error: batch_size is 160; allowed: 1 to 130, the images that an epoch"):
        run_program(*narrow, "--batch-size", "160")


def test_the_single_file_stands_alone():
    text = (EXAMPLES / "speedrun94_single.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert re.findall("^(?:from|import) fastcifar.*", text, re.MULTILINE) == [
        "import fastcifar.kernels as kernels",
        "from fastcifar import Augment, Dataset, EpochPlan, UserError, load_dataset",
    ]
