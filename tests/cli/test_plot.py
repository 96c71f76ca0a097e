"""`fastcifar plot RUN...` and `train --plot`: figures of runs that were kept, and what keeps them from being drawn."""

import json
import sys
from pathlib import Path

import pytest

from fastcifar.cli import main
from fastcifar.errors import UserError
from fastcifar.record import EpochRow
from fastcifar.report.figures import Figure
from tests.cli.test_resume import MLP

BY_EPOCH = {"accuracy-by-epoch", "loss-by-epoch", "learning-rate-by-epoch"}
ALL = {*BY_EPOCH, *(name.replace("epoch", "seconds") for name in BY_EPOCH), "time-to-accuracy"}
TRAIN = [each for each in MLP if each != "--quiet"]
MISSING = "fastcifar: figures need matplotlib, which is not installed: pip install 'fastcifar[plot]'\n"


@pytest.fixture
def drawn(monkeypatch):
    """The stems of the figures that are to be drawn, which takes longer than anything else here."""
    stems = []
    monkeypatch.setattr(Figure, "save", lambda figure, stem: stems.append(str(stem)) or [Path(f"{stem}.png")])
    return stems


@pytest.fixture
def kept(new_record, tmp_path, monkeypatch):
    """Two folders of a run each, in a folder that is the present one."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two")):
        row = EpochRow(1, 2.0, 0.2, 0.3, 4.0, 1.0, 0.1)
        record = new_record(seed=seed, history=(row,), epochs=1 + seed).to_json()
        Path(name).mkdir()
        Path(name, "run.json").write_text(json.dumps(record))


def test_figures_are_beside_a_run_and_of_several_in_a_folder_of_their_own(kept, drawn, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "1000")
    for words, folder in ((["one"], "one/figures"), (["one", "two"], "plots"), (["two", "--out", "a/b"], "a/b")):
        drawn.clear()
        assert main(["plot", *words]) == 0
        assert {Path(stem).name for stem in drawn} == ALL and {str(Path(stem).parent) for stem in drawn} == {folder}
        out, err = capsys.readouterr()
        assert err == "" and out.startswith(f"figures in {folder}, each as png, svg, pdf: accuracy-by-epoch, ")
        assert out.count("\n") == 1 and all(stem in out for stem in ALL)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "plot needs a folder of runs, as in: fastcifar plot runs/five"),
        (["nosuch"], "nosuch does not exist; allowed: a folder of runs, as runs.jsonl or run.json lie in one"),
        (["empty"], "empty holds no run; allowed: a folder that fastcifar train wrote"),
        (
            ["one", "--out", "one/run.json"],
            "--out is 'one/run.json', a file; allowed: a folder, which may be a new one",
        ),
        (["one", "--out", "one/run.json/a"], "output folder one/run.json/a cannot be made: "),
        (["failed", "--out", "new"], "no run is finished; allowed: runs with an epoch or more"),
        (["one", "--ot", "new"], "unknown flag --ot"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line_and_leaves_nothing(words, line, kept, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for name in ("empty", "failed"):
        (tmp_path / name).mkdir()
    (tmp_path / "failed/runs.jsonl").write_text(json.dumps({"seed": 0, "failed": "killed"}) + "\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["plot", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"fastcifar: {line}"), err.count("\n")) == ("", True, 1), err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_and_refusals_need_no_torch(without_torch):
    without_torch("plot --help", "plot nosuch")


def test_without_matplotlib_nothing_is_read_or_trained(kept, few_images, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    before = sorted(tmp_path.rglob("*"))
    for words in (["plot", "nosuch"], [*TRAIN, "--plot", "--out", "run"]):
        assert main(words) == 2
        assert capsys.readouterr() == ("", MISSING)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_training_draws_what_is_in_its_folder_when_it_is_done(few_images, drawn, capsys):
    pytest.importorskip("matplotlib")
    few = [*TRAIN, "--epochs", "1", "--plot", "--out", "five"]
    assert main([*few, "--runs", "2"]) == 0
    assert set(drawn) == {f"five/figures/{name}" for name in ALL}
    assert "\nfigures in five/figures\n" in capsys.readouterr().out
    drawn.clear()
    assert main([*few, "--seed", "2", "--runs", "3", "--json"]) == 0
    assert set(drawn) == {f"five/figures/{name}" for name in (*ALL, "accuracy-histogram")}  # of all five
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 5


def test_a_run_whose_figures_fail_is_saved_and_one_line_says_why(few_images, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def fail(figure, stem):
        raise UserError(f"cannot write {stem}.png: No space left on device")

    monkeypatch.setattr(Figure, "save", fail)
    assert main([*MLP, "--epochs", "1", "--plot", "--out", "run"]) == 0
    out, err = capsys.readouterr()
    why = "cannot write run/figures/accuracy-by-epoch.png: No space left on device; fastcifar plot run draws them"
    assert err == f"fastcifar: no figures: {why}\n" and out.startswith("davidnet-mlp ")
    assert main(["summary", "run"]) == 0 and not Path("run/figures").exists()
