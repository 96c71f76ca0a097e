"""Sweeps of AlexNet beside the course's figures."""

import itertools
import json
import shlex
from pathlib import Path

import pytest

from bench import course
from bench.record import ROOT
from bench.tables import PAGES, read_results
from fastcifar.errors import UserError
from fastcifar.experiments import Diverged
from fastcifar.experiments.named.sweep import Sweep
from fastcifar.recipes import Recipe, change
from fastcifar.record import EpochRow

COURSE = change(
    Recipe(),
    {"network": "resnet18", "optimizer": "AdamW", "optimizer.lr": 3e-4, "batch_size": 256, "augment.crop": 0},
)
"""The recipe alexnet's own values."""
SCRIPTS = sorted((ROOT / "examples" / "course").glob("*.sh"))


def vary_of(script):
    words = shlex.split(script.read_text(encoding="utf-8").replace("\\\n", " "), comments=True)
    return tuple(value for flag, value in itertools.pairwise(words) if flag == "--vary")


def test_every_value_of_the_scripts_has_its_figure_of_the_course():
    texts = {word for script in SCRIPTS for arm in Sweep(recipe=COURSE, vary=vary_of(script)).arms.values()
             for word in arm.text.split(", ")}  # fmt: skip
    assert texts == {*course.COURSE} | {"transforms.gaussian_blur.share=0.0"}
    assert [len(Sweep(recipe=COURSE, vary=vary_of(script)).arms) for script in SCRIPTS] == [3, 9]


def test_a_row_for_each_value_is_shown_and_kept(new_record, tmp_path, capsys):
    sweep = Sweep(recipe=COURSE, vary=("optimizer.lr=3e-4,3e-3",), runs=2)
    records = [
        new_record(accuracy=0.7, loss=1.5, train_seconds=60.0 + seed, history=(
            EpochRow(1, 1.0, 0.5, best, 30.0), EpochRow(2, 0.5, 0.8, 0.7, 60.0),
        ))
        for seed, best in enumerate((0.75, 0.77))
    ]  # fmt: skip
    settings = {"dataset": "cifar10", "train_size": 45_000, "device": "cpu"}
    outcomes = {"recipe": records, "optimizer.lr-0.003": [Diverged("the loss became nan")] * 2}
    found = {**sweep.settings(), **sweep.result(settings, outcomes).to_dict()}
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="holds no sweep of AlexNet; allowed: folders of examples/course"):
        course.main([str(folder)])
    found["recipe"]["network"]["kind"] = "alexnet"
    (folder / "results.json").write_text(json.dumps(found))
    assert course.main([str(folder), "--save", str(tmp_path / "course.jsonl")]) == 0
    shown = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "lr" in line]
    assert [line[1:8] for line in shown] == [
        ["77.42%", "76.00%", "2", "1.798", "1.5000", "417 s", "60 s"],
        ["10.00%", "2 of 2 diverged", "0", "2.303", "-", "-", "-"],
    ]
    assert [(row["table"], row["n"]) for row in read_results(tmp_path)] == [(course.TABLE, 2), (course.TABLE, 0)]


def test_the_courses_figure_stands_only_beside_its_own_training(new_record, tmp_path):
    def rows(recipe=COURSE, parallel=1, **options):
        sweep = Sweep(recipe=recipe, **options)
        record = new_record(accuracy=0.7, loss=1.5, train_seconds=60.0, history=(EpochRow(1, 1.0, 0.5, 0.7, 30.0),))
        data = {"dataset": "cifar10", "train_size": 45_000, "parallel": parallel}
        found = {**sweep.settings(), **sweep.result(data, {name: [record] for name in sweep.arms}).to_dict()}
        found["recipe"] = {**found["recipe"], "network": {"kind": "alexnet"}}
        (tmp_path / "results.json").write_text(json.dumps(found, default=str))
        made = [result["row"] for result in course.results(tmp_path)]
        return [[row[name] for name in ("course: best accuracy", "course: time", "our time")] for row in made]

    both = ("optimizer.lr=3e-4,1e-3", "batch_size=128,256")
    assert rows(vary=both, grid=True) == [
        ["77.47%", "755 s", "60 s"],
        ["77.42%", "417 s", "60 s"],
        ["-", "-", "60 s"],  # another rate and another batch
        ["10.00%", "-", "60 s"],
    ]
    assert rows(vary=("batch_size=128",), parallel=2) == [["77.47%", "755 s", "-"]]


def test_the_table_has_its_page():
    assert f"<!-- begin {course.TABLE} -->" in Path(ROOT / PAGES[course.TABLE]).read_text(encoding="utf-8")
