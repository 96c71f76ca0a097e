"""`fastcifar summary DIR`: what runs that were kept say together, on the command line."""

import json
import statistics
import subprocess
import sys

import pytest

from fastcifar.cli import main

SMALL = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--epochs", "1", "--batch-size", "32"]


@pytest.fixture
def kept(few_images, capsys):
    """Train two runs and an ablation of one arm, each saved as their commands save it."""
    assert main(["train", *SMALL, "--runs", "2", "--out", "two", "--quiet"]) == 0
    assert main(["ablate", *SMALL, "--runs", "1", "--only", "label-smoothing", "--holdout", "64", "--out", "kept"]) == 0
    capsys.readouterr()


def test_it_says_of_saved_runs_what_their_command_said(kept, tmp_path, capsys):
    assert main(["summary", "two", "--target", "0.05", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    records = [json.loads((tmp_path / f"two/seed-{seed}/run.json").read_text()) for seed in (0, 1)]
    (group,) = found["groups"]
    assert (found["metric"], found["target"], found["unreadable"], group["n"]) == ("tta_accuracy", 0.05, 0, 2)
    for key in ("accuracy", "tta_accuracy", "tta_loss", "train_seconds", "time_seconds", "process_seconds"):
        values = [record[key] for record in records]
        assert (group[key]["mean"], group[key]["std"]) == (statistics.fmean(values), statistics.stdev(values))
        assert (group[key]["min"], group[key]["max"], group[key]["n"]) == (min(values), max(values), 2)
    assert group["recipe"] == records[0]["recipe"] and group["dataset"]["sha256"] == records[0]["dataset"]["sha256"]
    assert group["at_target"]["n"] == 2

    assert main(["summary", "two", "--metric", "accuracy", "--target", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "davidnet-mlp on synthetic, 256 training images, n=2"
    assert lines[2].split()[:2] == ["accuracy", f"{statistics.fmean(r['accuracy'] for r in records):.2%}"]
    assert [line.split()[0] for line in lines[2:]] == ["accuracy", "tta", "train", "time", "process", "at", "mean"]

    assert main(["summary", ".", "--target", "0.94"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[2:3] == ["0"]}
    assert {name: row[1:3] for name, row in rows.items()} == {
        "davidnet-mlp": ["2", "0"],
        "kept/full": ["1", "0"],
        "kept/label-smoothing": ["1", "0"],
    }
    assert "Share at 94% or above" in out and out.count("0 of 2") == 1 and out.count("0 of 1") == 2


def test_torch_is_not_imported(new_record, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(new_record().to_json()))
    code = "import sys; from fastcifar.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "summary", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "davidnet on cifar10, 50,000 training images, n=1"


def test_what_is_damaged_or_unfinished_is_said(new_record, tmp_path, capsys):
    lines = [json.dumps(new_record(seed=seed, tta_accuracy=0.94).to_json()) for seed in (0, 1)]
    (tmp_path / "runs.jsonl").write_text("\n".join([*lines, json.dumps({"seed": 7, "failed": "a\x1b[31m"}), "{torn"]))
    (tmp_path / "new").mkdir()
    (tmp_path / "new/unfinished.json").touch()
    assert main(["summary", str(tmp_path), "--target", "0.94"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[7:] == [
        r"1 run failed, which are in no other number (seed 7: a\x1b[31m)",
        "at 94% or above: 2 of 2 runs, 100.0% (95% interval 15.8% to 100.0%, Clopper-Pearson)",
        "mean above 94%: no test, which needs two runs or more that are not all equal",
        "1 unreadable, left out",
        "1 unfinished, left out",
    ]
    assert err == f"fastcifar: {tmp_path}/runs.jsonl: line 4 is torn or damaged, and is left out\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "summary needs a folder of runs, as in: fastcifar summary runs"),
        (["nosuch"], "nosuch does not exist; allowed: a folder of runs, as runs.jsonl or run.json lie in one"),
        (["."], ". holds no run; allowed: a folder that fastcifar train wrote"),
        ([".", "--target", "94"], "--target is 94.0; allowed: above 0, up to 1"),
        ([".", "--target", "nan"], "--target is nan; allowed: a finite number"),
        ([".", "--metric", "loss"], "--metric is 'loss'; allowed: one of tta-accuracy, accuracy, val-accuracy"),
    ],
)
def test_what_cannot_be_summarized_is_refused_in_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["summary", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"fastcifar: {line}"), err.count("\n")) == ("", True, 1), err
