"""Standard streams that are closed, full, gone or of few characters: the training is done, and the status says so."""

import io
import json
import os
import subprocess
import sys

import pytest

from fastcifar.cli import main

TRAIN = ["train", "--dataset", "synthetic", "--epochs", "1", "--train-size", "256", "--batch-size", "128"]
TRAIN += ["--network", "mlp", "--network.hidden", "8"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="shells")


def shell(line, cwd, *words, **environment):
    """Run a line of a shell in which `$RUN` is the command with the given words."""
    run = " ".join([sys.executable, "-m", "fastcifar", *words])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RUN": run, **environment}
    return subprocess.run(["sh", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("redirections", "status", "said"),
    [
        ("2>&-", 0, None),
        ("2>/dev/full", 0, None),
        (">&-", 4, "cannot write to standard output: it is closed"),
        (">/dev/full", 4, "cannot write to standard output: No space left on device"),
        (">&- 2>&- <&-", 4, None),
    ],
)
def test_a_stream_that_takes_nothing_ends_no_training(tmp_path, redirections, status, said):
    json_flag = ["--json"] if "full" in redirections else []
    done = shell(f"$RUN {redirections}", tmp_path, *TRAIN, "--out", "run", *json_flag)
    assert done.returncode == status
    assert done.stderr == (f"fastcifar: {said}\n" if said else "")
    assert json.loads((tmp_path / "run/run.json").read_text())["epochs"] == 1
    assert len(list((tmp_path / "run").iterdir())) == 4


def test_a_reader_that_leaves_ends_no_training(tmp_path):
    done = shell("{ $RUN; echo $? >status; } | head -n 1", tmp_path, *TRAIN, "--out", "run")
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    assert (tmp_path / "status").read_text() == "141\n"
    assert (tmp_path / "run/run.json").is_file()


@pytest.mark.parametrize("words", [TRAIN, ["verify", "--only", "lookahead", *TRAIN[1:3], *TRAIN[7:]]])
def test_a_terminal_of_few_characters_shows_escapes(tmp_path, words):
    words = [*words, "--out", "Bücher\udcff"] if words is TRAIN else ["verify", *TRAIN[1:3], *TRAIN[9:]]
    done = shell("$RUN", tmp_path, *words, PYTHONIOENCODING="ascii")
    assert done.returncode in (0, 1) and done.stdout.isascii() and "Traceback" not in done.stderr
    if words[0] == "train":
        assert r"saved in B\xfccher\udcff" in done.stdout
        assert (tmp_path / "Bücher\udcff/run.json").is_file()


def test_help_is_shown_on_any_terminal(tmp_path):
    done = shell("$RUN", tmp_path, "train", "--help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "") and "--epochs" in done.stdout


@pytest.mark.parametrize("line", ["$RUN >&-", "$RUN >/dev/full"])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["recipes", "show", "davidnet"], ["train", "--help"]])
def test_what_cannot_be_printed_is_an_error(tmp_path, line, words):
    done = shell(line, tmp_path, *words)
    assert done.returncode == 4
    assert done.stderr.startswith("fastcifar: cannot write to standard output: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("line", ["$RUN >&-", "$RUN >/dev/full", "$RUN 2>&-", "$RUN 2>/dev/full"])
def test_a_refusal_keeps_its_status(tmp_path, line):
    done = shell(line, tmp_path, "train", "--epochs", "0")
    assert done.returncode == 2
    assert done.stderr == ("" if "2>" in line else "fastcifar: epochs is 0.0; allowed: above 0\n")


def test_the_process_has_its_own_streams_again_afterwards(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii", errors="ignore")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["--version"]) == 0
    assert sys.stdout is out and sys.stderr is None and out.errors == "ignore"
