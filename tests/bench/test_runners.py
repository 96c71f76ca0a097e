"""The programs in bench/ run, at reduced size."""

import dataclasses
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from bench.convolutions import PASSES, _of_layers, _of_operators, convolutions
from bench.tables import read_results
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import get_recipe, quick
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.training import Trainer

ROOT = Path(__file__).resolve().parents[2]


def test_the_step_is_set_beside_its_convolutions(tmp_path):
    saved = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "bench.step", "--quick", "--rounds", "2", "--device", "cpu", "--save", str(saved)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    layers = [line.split() for line in done.stdout.splitlines() if "forward" in line]
    assert len(layers) == 9
    assert [sum(word in PASSES for word in line) for line in layers] == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    step, loader = read_results(tmp_path)
    assert (step["n"], loader["n"]) == (2, 2)
    ceiling, seconds = step["convolution_seconds"], step["step_seconds"]
    assert step["value"].startswith(f"{ceiling / statistics.median(seconds):.2f} of their rate")
    assert step["spread"].startswith(f"{ceiling / max(seconds):.2f} to {ceiling / min(seconds):.2f},")


def test_convolutions_are_found_in_any_network():
    recipe, _ = quick(get_recipe("davidnet"))
    recipe = dataclasses.replace(recipe, network=ResNet18Config(width=4), batch_size=8)
    trainer = Trainer(recipe, make_synthetic(8, 8), "cpu")
    found = convolutions(trainer)
    assert len(found) == sum(isinstance(module, torch.nn.Conv2d) for module in trainer.model.modules())
    assert [set(convolution.passes) for convolution in found][:2] == [{"forward", "weight"}, set(PASSES)]
    for convolution in found:
        weight = trainer.model.get_submodule(convolution.name).weight
        results = {which: call() for which, call in convolution.passes.items()}
        assert results["forward"].shape == convolution.outputs
        assert results["weight"][1].shape == weight.shape
        if "input" in results:
            assert results["input"][0].shape == convolution.inputs
        places = convolution.outputs[0] * convolution.outputs[2] * convolution.outputs[3]
        assert convolution.flop == 2 * places * weight.numel()


def test_convolutions_are_the_same_seen_by_layer_and_by_operator(monkeypatch):
    """Of images so large that a CPU convolves none as strips, and by torch's operators."""
    monkeypatch.setenv("FASTCIFAR_KERNELS", "reference")
    recipe, _ = quick(get_recipe("speedrun94"))
    trainer = Trainer(dataclasses.replace(recipe, dtype="float32", batch_size=2), make_synthetic(8, 8), "cpu")
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    seen = []
    for calls in (_of_layers(trainer.model, images), _of_operators(trainer.model, images)):
        tensors = [(call.inputs, call.weight) for call in calls]
        needs = [tuple(tensor.requires_grad for tensor in pair) for pair in tensors]
        shapes = [tuple(tensor.shape for tensor in pair) for pair in tensors]
        seen.append([[call.name for call in calls], shapes, needs])
    assert seen[0] == seen[1] and len(seen[0][0]) == 6, "all but the whitening, which is an operator of its own"


def test_a_convolution_above_nothing_but_what_is_frozen_in_the_end_has_no_input_gradient():
    recipe, _ = quick(get_recipe("speedrun94"))
    network = dataclasses.replace(recipe.network, whitening_bias_epochs=2)
    recipe = dataclasses.replace(recipe, epochs=3, batch_size=8, network=network)
    first, second = convolutions(Trainer(recipe, make_synthetic(32, 8), "cpu"))[:2]
    assert [set(part.passes) for part in (first, second)] == [{"forward", "weight"}, set(PASSES)]


def test_convolutions_are_those_of_the_stage_asked_for():
    recipe, _ = quick(get_recipe("speedrun94"))
    network = dataclasses.replace(recipe.network, whitening_bias_epochs=2)
    recipe = dataclasses.replace(recipe, epochs=3, batch_size=8, network=network)
    trainer = Trainer(recipe, make_synthetic(32, 8), "cpu")
    for stage in trainer.timeline.steps_by_stage():
        found = {convolution.name: convolution for convolution in convolutions(trainer, stage)}
        above = found["blocks.0.convs.0"]
        side = stage.size if stage.frozen else stage.size - 1  # with a border, or without
        assert above.inputs == (8, 24, side, side)
        assert above.outputs[2] == (side - 2 if stage.frozen else side)
        assert ("input" in above.passes) == ("whitening" in found) == (not stage.frozen), "the bias below it is trained"


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


def test_a_checkpoint_is_set_beside_an_epoch(tmp_path):
    saved = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "bench.checkpoint", "--recipe", "warmstart-mlp", "--rounds", "2"]
    command += ["--folder", str(tmp_path), "--save", str(saved)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = read_results(tmp_path)
    assert result["n"] == 2 and list(tmp_path.iterdir()) == [saved]
    costs = [copy + file for copy, file in zip(result["copy_seconds"], result["file_seconds"], strict=True)]
    assert result["spread"] == f"{min(costs):.2f} to {max(costs):.2f} s"
