"""Part `smoke`: a recipe trains as it should, on a part of the images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from unittest.mock import patch

import torch

from bench.campaign.campaign import Campaign, Line
from bench.campaign.data import smoke_dataset
from bench.campaign.recipes import get_recipe
from bench.campaign.trainings import training
from bench.record import versions
from fastcifar.training import Trainer
from fastcifar.training.run import Run
from fastcifar.training.timeline import Epoch, Stage


def smoke(campaign: Campaign, recipe: str, runs: int = 3) -> Iterator[Line]:
    """Train from seeds 0, 1 and 2: the first also captures. In the second nothing may wait for the device while steps
    are replayed: where something does, that is a finding, and the training is repeated without the check."""
    done = {record["seed"] for record in campaign.records("smoke", "training") if record["recipe"] == recipe}
    if len(done) >= runs:
        return
    began = time.monotonic()
    images = smoke_dataset(campaign)
    trainer = Trainer(get_recipe(recipe, campaign.tiny), images, campaign.device)
    yield {"what": "images", "recipe": recipe, "train": len(images.train), "test": len(images.test), **versions()}
    for number in range(runs):
        started = time.monotonic()
        strict = number == 1
        try:
            run = _run_strictly(trainer, number) if strict else trainer.run(number, eval_every=0)
        except RuntimeError as error:
            if not strict:
                raise
            yield {"what": "finding", "recipe": recipe, "found": f"trained without a wait it failed: {error}"}
            run = trainer.run(number, eval_every=0)
        record = training(campaign, recipe, run, number == 0, started - began)
        if number not in done:
            yield {**record, "strict": strict}


def _run_strictly(trainer: Trainer, seed: int) -> Run:
    """Train, raising RuntimeError where the host waits for the device between the first and the last step."""
    enter, end, last = trainer.enter, trainer.end_epoch, trainer.timeline.epochs[-1]

    def enter_and_forbid(stage: Stage) -> None:
        enter(stage)
        _set_waiting(trainer, "error")

    def end_and_allow(epoch: Epoch) -> None:
        end(epoch)
        if epoch is last:
            _set_waiting(trainer, "default")

    with patch.object(trainer, "enter", enter_and_forbid), patch.object(trainer, "end_epoch", end_and_allow):
        try:
            return trainer.run(seed, eval_every=0)
        finally:
            _set_waiting(trainer, "default")


def _set_waiting(trainer: Trainer, mode: str) -> None:
    if trainer.device.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)
