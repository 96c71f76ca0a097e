"""Standard streams that are closed, full, gone or of few characters: the training is done, and the status says so."""

import io
import json
import os
import subprocess
import sys

import pytest

from fastcifar.cli import main

TRAIN = ["train", "--dataset", "synthetic", "--epochs", "1", "--batch-size", "64", "--out", "run"]
TRAIN += ["--network", "mlp", "--network.hidden", "8"]

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="it has neither /dev/full nor these shells"),
    pytest.mark.usefixtures("few_images"),
]


def full():
    return open("/dev/full", "w")


def left():
    """A pipe whose reader has left."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return open(write_end, "w")


def ascii_only():
    return io.TextIOWrapper(io.BytesIO(), "ascii")


CLOSED, FULL = "it is closed", "No space left on device"


@pytest.mark.parametrize("words", [TRAIN, [*TRAIN, "--json"], [*TRAIN, "--quiet"], [*TRAIN, "--runs", "2"]])
@pytest.mark.parametrize(
    ("stream", "make", "status", "said"),
    [
        ("stderr", lambda: None, 0, ""),
        ("stderr", full, 0, ""),
        ("stdout", lambda: None, 4, f"fastcifar: cannot write to standard output: {CLOSED}\n"),
        ("stdout", full, 4, f"fastcifar: cannot write to standard output: {FULL}\n"),
        ("stdout", left, 141, ""),
        ("stdout", ascii_only, 0, ""),
    ],
)
def test_a_stream_that_takes_nothing_ends_no_training(capsys, monkeypatch, tmp_path, words, stream, make, status, said):
    made = make()
    monkeypatch.setattr(sys, stream, made)
    assert main(words) == status
    assert capsys.readouterr().err == said
    for folder in ("run/seed-0", "run/seed-1") if "--runs" in words else ("run",):
        assert json.loads((tmp_path / folder / "run.json").read_text())["epochs"] == 1
        assert len(list((tmp_path / folder).iterdir())) == 4
    assert getattr(sys, stream) is made  # the process has its own again
    if make is ascii_only:
        assert made.errors == "strict"


def test_a_process_without_streams_trains(tmp_path):
    """What opens a file next would have the number of a stream, and libraries write to that."""
    command = " ".join([sys.executable, "-m", "fastcifar", *TRAIN, "--train-size", "64"])
    assert subprocess.run(["sh", "-c", f"{command} >&- 2>&- <&-"]).returncode == 4
    assert json.loads((tmp_path / "run/run.json").read_text())["epochs"] == 1


def test_a_terminal_of_few_characters_shows_escapes(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", ascii_only())
    assert main([*TRAIN, "--out", "Bücher\udcff"]) == 0
    assert r"saved in B\xfccher\udcff" in sys.stdout.buffer.getvalue().decode("ascii")
    assert (tmp_path / "Bücher\udcff/run.json").is_file()


VERIFY = ["verify", "--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--batch-size", "16"]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["recipes", "tricks"], VERIFY])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_and_tables_are_shown_on_any_terminal(monkeypatch, words, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert main(words) == 0
    assert sys.stdout.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("make", [lambda: None, full])
def test_a_refusal_keeps_its_status(monkeypatch, stream, make):
    monkeypatch.setattr(sys, stream, make())
    assert main(["train", "--epochs", "0"]) == 2
