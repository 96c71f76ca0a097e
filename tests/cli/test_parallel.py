"""`fastcifar train --parallel K`, and ranks of torchrun: the result of one process, and who tells it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastcifar.cli import main
from fastcifar.errors import NonFiniteLoss
from fastcifar.experiments.parallel import ParallelRunner
from tests.cli.test_resume import MLP, kept
from tests.cli.test_several import fails

pytestmark = pytest.mark.usefixtures("few_images", "few_threads")
ROOT = Path(__file__).parents[2]
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LOUD = [word for word in MLP if word != "--quiet"]


@pytest.fixture
def few_threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # ranks leave torch's number, as somebody said it
    yield
    torch.set_num_threads(before)


def rank(patch, number, count=2):
    for name, value in zip(RANKS, (number, count, number, count), strict=True):
        patch.setenv(name, str(value))


def test_it_ends_as_one_process_does_and_goes_on_after_a_signal(capsys, monkeypatch):
    assert main([*MLP, "--threads", "1", "--runs", "4", "--out", "one"]) == 0
    expected = capsys.readouterr().out
    note = ParallelRunner._note

    def interrupt(self, key, outcome):
        note(self, key, outcome)
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ParallelRunner, "_note", interrupt)
            words = ["--threads", "3", "--parallel", "2", "--runs", "4", "--out", "two"]
            assert main([*MLP, *words]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert said.startswith("fastcifar: interrupted by SIGTERM; ") and said.count("\n") == 1
    assert said.endswith("kept in two; fastcifar train --resume two goes on\n")
    asked = json.loads(Path("two/unfinished.json").read_text())
    assert (asked["options"]["threads"], asked["options"]["parallel"], asked["seeds"]) == (3, 2, [0, 1, 2, 3])
    assert main(["train", "--resume", "two"]) == 0
    lines = capsys.readouterr().out.splitlines(keepends=True)
    assert " on cpu (1 thread, " in lines[1] and lines[1].endswith("), seeds 0 to 3, 2 at once\n")
    assert [line.split()[1] for line in lines if line.startswith("seed ")] == ["0", "1", "2", "3"]
    assert lines[-1] == expected and kept("two") == kept("one")


def test_a_single_run_needs_no_other_process(capsys, monkeypatch):
    monkeypatch.setattr(ParallelRunner, "_start", lambda *_: pytest.fail("started"))
    assert main([*MLP, "--epochs", "1", "--parallel", "4", "--out", "one"]) == 0


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["train", "--parallel", "0"], "--parallel is 0; allowed: 1 to 1,024"),
        (["train", "--parallel", "2", "--profile"], "--profile traces one process, and --parallel is 2; allowed: one"),
        (["compare", "davidnet", "davidnet", "--parallel", "two"], "--parallel is 'two'; allowed: a whole number"),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, tmp_path, words, refusal):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"fastcifar: {refusal}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["train"], "--runs is 1, for torchrun's 2 ranks; allowed: 2 or more, which they share"),
        (["train", "--runs", "2", "--parallel", "3"], "--parallel is 3 in each of torchrun's 2 ranks; allowed: one of"),
        (["verify", "--quick"], "verify keeps no runs that torchrun's ranks could share; allowed: with --out DIR"),
    ],
)
def test_ranks_are_refused_by_the_first(capsys, monkeypatch, words, refusal):
    rank(monkeypatch, 0)
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"fastcifar: {refusal}")


def test_the_first_rank_alone_tells_and_has_the_status_of_all(capsys, monkeypatch):
    trained = fails(monkeypatch, NonFiniteLoss("the loss became nan"), 1)
    for number, status in ((1, 0), (0, 3)):
        rank(monkeypatch, number)
        assert main([*LOUD, "--epochs", "1", "--runs", "3", "--out", "all"]) == status
        out, err = capsys.readouterr()
        assert ("  n=2  " in out and "1 of 3 diverged" in out, bool(out), err) == (number == 0, number == 0, "")
    assert trained == [0, 1, 2]
    rank(monkeypatch, 1)
    assert main(["train", "--resume", "all"]) == 0 and capsys.readouterr() == ("", "")
    assert main([*LOUD, "--runs", "3", "--out", "all"]) == 2  # another number of epochs
    assert capsys.readouterr().err.startswith("fastcifar: rank 1: all/seed-0 holds another run: recipe.epochs is ")


def test_the_first_rank_alone_writes_an_experiments_result(capsys, monkeypatch):
    words = ["compare", "warmstart-mlp", "warmstart-mlp", "--dataset", "synthetic"]
    words += ["--batch-size", "64", "--epochs", "1"]
    for number in (1, 0):
        rank(monkeypatch, number)
        assert main([*words, "--runs", "2", "--holdout", "64", "--out", "both"]) == 0
        assert (bool(capsys.readouterr().out), Path("both/results.json").exists()) == (number == 0, number == 0)


def test_torchruns_ranks_share_the_runs_and_make_one_result(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fastcifar"]
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", *RANKS)}
    environment["PYTHONPATH"] = str(ROOT)
    small = ["--train-size", "256", "--runs", "3", "--out"]
    done = subprocess.run(
        [*launcher, *LOUD, *small, "ranks"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved in ranks") == 1 and done.stdout.count("  n=3  ") == 1
    records = [json.loads(line) for line in Path("ranks/runs.jsonl").read_text().splitlines()]
    assert sorted(each["seed"] for each in records) == [0, 1, 2] and not Path("ranks/unfinished.json").exists()
    one = [sys.executable, "-m", "fastcifar", *MLP, "--threads", str(records[0]["device"]["threads"])]
    assert subprocess.run([*one, *small, "one"], cwd=tmp_path, env=environment).returncode == 0
    assert kept("ranks") == kept("one")
