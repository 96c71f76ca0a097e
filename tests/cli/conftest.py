"""What tests of several commands ask for."""

import subprocess
import sys

import pytest

import fastcifar.data
from fastcifar.data import DownloadError
from fastcifar.data.residency import place_images
from fastcifar.data.synthetic import make_synthetic


@pytest.fixture
def few_images(monkeypatch, tmp_path):
    """Run commands in an empty folder, on a synthetic set that is smaller than users have it; what is downloaded is
    out of reach."""

    def load(name, data_dir, device, holdout=0, mirror=None, resident="auto", resize=0):
        if name != "synthetic":
            raise DownloadError("https://a.place", "no network")
        dataset = make_synthetic(train_size=256, test_size=64)
        dataset = dataset.hold_out(holdout) if holdout else dataset
        return place_images(dataset, resident, dataset.train.device) if resident else dataset

    monkeypatch.setattr(fastcifar.data, "load_dataset", load)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def without_torch():
    """A function that asserts that lines, those of a help and others that are refused, do not import torch."""
    code = (
        "import contextlib, io, sys\n"
        "from fastcifar.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        assert main(line.split()) == (0 if 'help' in line else 2), line\n"
        "    assert 'torch' not in sys.modules, line\n"
    )

    def check(*lines: str) -> None:
        done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return check
