"""The programs in bench/ run, at reduced size."""

import dataclasses
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from bench.step import _PASSES, convolution_calls
from bench.tables import read_results
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import ResNetConfig, get_recipe, quick
from fastcifar.training import Trainer

ROOT = Path(__file__).resolve().parents[2]


def test_the_step_is_set_beside_its_convolutions(tmp_path):
    saved = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "bench.step", "--quick", "--rounds", "2", "--device", "cpu", "--save", str(saved)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    layers = [line.split() for line in done.stdout.splitlines() if "forward" in line]
    assert len(layers) == 9
    assert [sum(word in _PASSES for word in line) for line in layers] == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    step, loader = read_results(tmp_path)
    assert (step["n"], loader["n"]) == (2, 2)
    ceiling, seconds = step["convolution_seconds"], step["step_seconds"]
    assert step["value"].startswith(f"{ceiling / statistics.median(seconds):.2f} of their rate")
    assert step["spread"].startswith(f"{ceiling / max(seconds):.2f} to {ceiling / min(seconds):.2f},")


def test_convolutions_are_found_in_any_network():
    recipe, _ = quick(get_recipe("davidnet"))
    recipe = dataclasses.replace(recipe, network="resnet18", batch_size=8, resnet=ResNetConfig(width=4))
    trainer = Trainer(recipe, make_synthetic(8, 8), "cpu")
    calls = convolution_calls(trainer)
    assert len(calls) == sum(isinstance(module, torch.nn.Conv2d) for module in trainer.model.modules())
    assert [set(passes) for passes in calls.values()][:2] == [{"forward", "weight"}, set(_PASSES)]
    for passes in calls.values():
        for call in passes.values():
            call()


def test_the_first_step_of_a_fresh_process_is_timed():
    command = [sys.executable, "-m", "bench.first_step", "--dataset", "synthetic", "--quick", "--processes", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert "training: steps" in first
    assert "(n=1, " in last


def test_every_benchmark_runs():
    command = [sys.executable, "-m", "pytest", "bench", "-q", "--benchmark-disable", "-k", "not compiled and not step]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
