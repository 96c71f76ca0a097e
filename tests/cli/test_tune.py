"""`fastcifar tune` as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastcifar.cli import main
from tests.cli.test_parallel import rank

pytestmark = pytest.mark.usefixtures("few_images")
WORDS = ["tune", "--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--epochs", "1"]
WORDS += ["--batch-size", "32", "--ema.decay", "0", "--train-size", "128", "--holdout", "64", "--threads", "1"]
WORDS += [
    "--optimizer.bias-lr-factor",
    "1",
    "--optimizer.lr",
    "0.1",
    "--optimizer.momentum",
    "0.5",
    "--optimizer.weight-decay",
    "0.01",
]

REFUSED = {
    "tune --fields optimizer.momntum": "--fields has 'optimizer.momntum'; did you mean 'optimizer.momentum'?",
    "tune --fields network.kind": "--fields has 'network.kind'; ",
    "tune --fields augment.cutout": "--fields has augment.cutout, which is 0 and multiplied stays 0; allowed: a start",
    "tune --fields epochs epochs": "--fields has epochs twice; allowed: each field once",
    "tune --network mlp --fields network.widths": "--fields has 'network.widths'; ",
    "tune --optimizer Rprop --optimizer.lr -1": "optimizer.lr is -1.0; allowed: above 0",
    "tune --factor 1": "--factor is 1; allowed: above 1, up to 1000",
    "tune --by time": "--by is 'time'; allowed: one of loss, accuracy",
    "tune --runs 3 --most-trainings 2": "--most-trainings is 2; allowed: runs, 3, or more",
    "tune --most-cycles 0": "--most-cycles is 0; allowed: 1 or more",
    "tune --parallel 2": "2 processes are to share the runs of each point, and runs is 1; allowed: no more processes",
}


@pytest.mark.parametrize("line", REFUSED)
def test_bad_input_is_refused_in_one_line(line, capsys):
    assert main(line.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"fastcifar: {REFUSED[line]}")
    assert list(Path().iterdir()) == []


def test_help_and_refusals_do_not_import_torch(without_torch):
    without_torch(*REFUSED, "tune --help")


def told(folder):
    """What the result says, but for the limits that ended the search."""
    values = json.loads(Path(folder, "results.json").read_text())
    return {name: value for name, value in values.items() if name not in ("most_trainings", "ended")}


def test_it_goes_on_where_it_was_and_what_it_found_is_a_recipe(capsys):
    few = [*WORDS, "--fields", "optimizer.lr"]
    assert main([*few, "--most-trainings", "3", "--out", "on"]) == 0
    out = capsys.readouterr().out
    assert "[1/3] start/seed-0 " in out and "[3/3] optimizer.lr_0.4/seed-0 " in out
    assert out.splitlines()[-3] == "--most-trainings 3 ended it: with more the same command goes on"
    assert main([*few, "--out", "on"]) == main([*few, "--quiet", "--out", "at-once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(" kept") for line in lines if line.startswith("[")][:4] == [True, True, True, False]
    assert told("on") == told("at-once")
    assert Path("on/table.md").read_text() == Path("at-once/table.md").read_text()

    kept = told("on")
    assert kept["found"]["optimizer.lr"] > 0.1 and kept["difference"]["loss"]["mean"] < 0
    best = min(kept["steps"], key=lambda step: step["loss"]["mean"])
    assert (
        main(
            [
                "train",
                "--recipe",
                "on/tuned.toml",
                "--dataset",
                "synthetic",
                "--train-size",
                "128",
                "--holdout",
                "64",
                "--threads",
                "1",
                "--out",
                "run",
            ]
        )
        == 0
    )
    run = json.loads(Path("run/run.json").read_text())
    assert run["recipe"]["name"] == "davidnet-tuned"
    assert run["recipe"]["optimizer"]["lr"] == kept["found"]["optimizer.lr"] and run["tta_loss"] == best["loss"]["mean"]


KILLED = """
import sys
import fastcifar.data
from fastcifar.cli import main
from fastcifar.data.synthetic import make_synthetic
from fastcifar.training import Trainer

def run(trainer, seed, **options):
    if trainer.recipe.optimizer.lr > 0.3:
        print("in the midst of it", flush=True)
        input()
    return train(trainer, seed, **options)

train, Trainer.run = Trainer.run, run
fastcifar.data.load_dataset = lambda *_: make_synthetic(train_size=256, test_size=64)
main(sys.argv[1:])
"""


def test_killed_before_a_training_ends_it_goes_the_same_way():
    words = [*WORDS, "--fields", "optimizer.lr", "--quiet", "--out"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KILLED, *words, "killed"], **pipes) as process:
        assert process.stdout.readline() == "in the midst of it\n"
        process.kill()
    before = {path.parent.name: path.stat().st_mtime_ns for path in Path("killed").rglob("seed-0.json")}
    assert set(before) == {"start", "optimizer.lr_0.2"}
    assert main([*words, "killed"]) == main([*words, "whole"]) == 0
    assert told("killed") == told("whole") and told("whole")["trainings"] > 3
    assert all(Path("killed", name, "seed-0.json").stat().st_mtime_ns == time for name, time in before.items())


def test_ranks_share_the_runs_of_a_point_and_the_first_tells(capsys, monkeypatch):
    words = [*WORDS, "--fields", "optimizer.lr", "--most-trainings", "4", "--out", "ranks"]
    for number in (1, 0):
        rank(monkeypatch, number)
        assert main([*words, "--runs", "2"]) == 0
        assert (bool(capsys.readouterr().out), Path("ranks/tuned.toml").exists()) == (number == 0, number == 0)
        assert main(words) == 2
        assert "2 processes are to share the runs of each point, and runs is 1" in capsys.readouterr().err
