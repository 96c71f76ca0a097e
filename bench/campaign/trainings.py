"""Part `trainings`: as many whole trainings of a recipe as its time allows, in one process. Part `smoke`: a few on a
part of the images, to see that the recipe trains as it should."""

from __future__ import annotations

import time
from collections.abc import Iterator
from unittest.mock import patch

import torch

from bench.campaign.campaign import Campaign, Line
from bench.campaign.data import dataset, smoke_dataset
from bench.campaign.recipes import get_recipe
from bench.peers.clocks import read_clocks
from bench.record import versions
from fastcifar.training import Trainer
from fastcifar.training.run import Run
from fastcifar.training.timeline import Epoch, Stage

_WANTED = {"speedrun94": 200, "speedrun94-next": 200, "davidnet": 20, "davidnet-alternating": 20}
_WANTED_OF_OTHERS = 60
_EVERY = 10  # clocks are read in one training of so many: asking nvidia-smi takes as long as a good part of one
_KEPT = (
    *("accuracy", "tta_accuracy", "tta_loss", "train_seconds", "time_seconds", "process_seconds", "steps", "dtype"),
    *("captured", "not_captured", "phases"),
)


def trainings(campaign: Campaign, recipe: str) -> Iterator[Line]:
    """Train one recipe from one seed after another, those that earlier calls have left out."""
    wanted = 2 if campaign.tiny else _WANTED.get(recipe, _WANTED_OF_OTHERS)
    done = {record["seed"] for record in campaign.records("trainings", "training") if record["recipe"] == recipe}
    if len(done) >= wanted:
        return
    began = time.monotonic()
    trainer = Trainer(get_recipe(recipe, campaign.tiny), dataset(campaign), campaign.device)
    longest = 0.0
    for number, seed in enumerate(seed for seed in range(wanted) if seed not in done):
        if campaign.seconds_left < longest:
            return
        started = time.monotonic()
        run = trainer.run(seed, eval_every=0)
        yield training(campaign, recipe, run, number == 0, started - began, clocks=seed % _EVERY == 0)
        if number:  # the first also compiles and captures, for longer than many others take
            longest = max(longest, time.monotonic() - started)


def training(campaign: Campaign, recipe: str, run: Run, first: bool, setup: float, clocks: bool = True) -> Line:
    """Return what is kept of a training.

    campaign: the campaign.
    recipe: the recipe's name in the campaign.
    run: the training.
    first: whether it was the process's first, which also compiles and captures.
    setup: seconds from the part's beginning to that of the training.
    clocks: whether to read the device's clocks.

    Raises CaptureFailed where its steps should have been captured and were not.
    """
    campaign.require_capture(recipe, run.record.captured, run.record.not_captured)
    record = run.record.to_json()
    return {
        "what": "training",
        "recipe": recipe,
        "fields": record["recipe"] if first else None,
        "seed": run.seed,
        "first_in_process": first,
        "setup_seconds": setup,
        **{key: record[key] for key in ("device", *_KEPT)},
        "clocks": read_clocks(campaign.device.type) if clocks else None,
    }


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
            run = run_strictly(trainer, number) if strict else trainer.run(number, eval_every=0)
        except RuntimeError as error:
            if not strict:
                raise
            yield {"what": "finding", "recipe": recipe, "found": f"trained without a wait it failed: {error}"}
            run = trainer.run(number, eval_every=0)
        record = training(campaign, recipe, run, number == 0, started - began)
        if number not in done:
            yield {**record, "strict": strict}


def run_strictly(trainer: Trainer, seed: int) -> Run:
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
