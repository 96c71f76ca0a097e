"""Minutes of a training, predicted from its steps: two processes at reduced size, and sums of what they say."""

import dataclasses

import pytest
import torch

from bench import minutes, minutes_worker
from bench.tables import read_results
from fastcifar.errors import UserError
from fastcifar.recipes import get_recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from tests.small import EVERYTHING


def test_each_way_is_asked_in_turn_and_recorded(tmp_path, monkeypatch, capsys):
    recipe = dataclasses.replace(get_recipe("davidnet"), name="tiny", network=MLPConfig(hidden=(8,)), batch_size=500)
    monkeypatch.setattr(minutes, "recipe_of", lambda options: recipe)
    assert minutes.main(["--rounds", "2", "--save", str(tmp_path / "results.jsonl")]) == 0
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "round" in line]
    ways = [*minutes.WAYS] if not torch.cpu._is_amx_tile_supported() else [*minutes.WAYS, "held to AVX512-BF16"]
    assert told == [f"{way}, round {number} of 2" for number in (1, 2) for way in ways]
    results = read_results(tmp_path)
    assert [result["n"] for result in results] == [2] * len(ways)
    held = results[1]
    assert held["facts"]["dtype"] == "float32" and held["facts"]["steps"] == 1000
    assert min(held["minutes"]) > 0 and "minutes (float32, " in held["value"]


def test_a_training_is_its_steps_of_each_stage_and_its_evaluation(monkeypatch):
    """A step takes its image's side in seconds, an evaluation of a tenth of the test images one."""
    sides = []
    monkeypatch.setattr(minutes_worker, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(minutes_worker, "seconds_of", lambda call, device: call() or 1.0)
    monkeypatch.setattr(minutes_worker, "evaluate", lambda *args: None)
    monkeypatch.setattr(
        minutes_worker, "step_on_noise", lambda trainer, stage: lambda: sides.append(stage) or stage.size
    )
    recipe = dataclasses.replace(EVERYTHING, batch_size=100)
    facts, answer = minutes_worker.load({"recipe": dataclasses.asdict(recipe)})
    del sides[:]
    seconds = answer({})["seconds"]
    # 4.5 epochs, of which the first tenths are on 20 pixels; from the second epoch on 60% of the images.
    timeline = minutes_worker.Timeline(recipe, 50_000, 32, {})
    steps = [epoch.steps for epoch in timeline.epochs]
    expected = sum(epoch.stage.size * epoch.steps for epoch in timeline.epochs)
    assert {stage.size for stage in sides} == {20, 32}
    assert seconds == pytest.approx(10 + expected) and facts["steps"] == sum(steps)


def test_no_rounds_are_refused():
    with pytest.raises(UserError, match="--rounds is 0; allowed: 1 or more"):
        minutes.main(["--rounds", "0"])
