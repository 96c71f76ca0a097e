"""The programs in bench/ run, at reduced size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.peers.cifar10_fast import ghost_order, load_peer
from fastcifar.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_the_step_is_set_beside_its_convolutions():
    command = [sys.executable, "-m", "bench.step", "--tiny", "--steps", "2", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sum("forward" in line for line in done.stdout.splitlines()) == 9
    assert "step / convolutions" in done.stdout


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no checkout of davidcpage/cifar10-fast: core.py is missing"):
        load_peer(tmp_path)


def test_an_unknown_version_of_a_peer_is_refused(tmp_path):
    (tmp_path / "core.py").write_text("answer = 42\n")
    with pytest.raises(UserError, match=r"core.py is not the version these shims are for"):
        load_peer(tmp_path)


def test_our_consecutive_ghost_groups_hold_the_images_of_their_strided_ones():
    order = ghost_order(batch=12, ghost_batch=4)
    theirs = torch.arange(12) % 3  # their group of each image, of three groups
    assert theirs[order].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_the_kernel_benchmarks_run():
    command = [sys.executable, "-m", "pytest", "bench/kernels", "-q", "--benchmark-disable", "-k", "not compiled"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "18 passed" in done.stdout
