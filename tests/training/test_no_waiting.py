"""On a GPU the host never waits for the device inside an epoch."""

import dataclasses

import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.training import Stopwatch, Trainer


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waiting is counted on a GPU")
@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_nothing_waits_for_the_device_inside_an_epoch(monkeypatch, name, captured):
    recipe: Recipe = RECIPES[name]
    gentle = dataclasses.replace(recipe.optim, lr=1e-3, bias_lr=1e-3, head_lr=1e-3)  # its rates are for its batches
    recipe = dataclasses.replace(recipe, epochs=2, batch_size=64, optim=gentle)
    trainer = Trainer(recipe, make_synthetic(256, 64), "cuda")
    before = trainer.run(0)
    if not captured:
        trainer._replays = dict.fromkeys(trainer._replays, trainer._step)
        trainer.run(0)
    begin, leave = trainer._step.begin_epoch, Stopwatch.__exit__

    def begin_and_forbid(plan):
        begin(plan)
        torch.cuda.set_sync_debug_mode("error")

    def allow_and_leave(self, *exc):
        torch.cuda.set_sync_debug_mode("default")
        return leave(self, *exc)

    monkeypatch.setattr(trainer._step, "begin_epoch", begin_and_forbid)
    monkeypatch.setattr(Stopwatch, "__exit__", allow_and_leave)
    try:
        run = trainer.run(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(run.rows) == len(before.rows)
