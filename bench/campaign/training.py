"""Parts `steps`, `davidnet` and `speedrun`: where a step's time goes, and whole trainings."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from bench.campaign.campaign import Campaign, Part, Record
from bench.campaign.environment import searching
from bench.campaign.recipes import dataset, measured_recipes, noise, recipes_by_batch
from bench.peers.clocks import read_clocks
from fastcifar.errors import NonFiniteLoss
from fastcifar.recipes import Recipe
from fastcifar.training import Trainer
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.timeline import Stage

_MOST_KERNELS = 30


def steps(campaign: Campaign) -> Iterator[Record]:
    """Each recipe's step, with cuDNN's own search and without; then by kernel."""
    images = noise(campaign)
    for name, recipe in recipes_by_batch(campaign).items():
        searches = (True, False) if campaign.device.type == "cuda" else (False,)
        for search in searches:
            with searching(search):
                trainer = Trainer(recipe, images, campaign.device)
                try:
                    found = _step_seconds(trainer)
                except NonFiniteLoss as error:  # of meaningless images; the other recipes must have their turn
                    yield {"what": "failed", "recipe": name, "reason": str(error)}
                    break
            yield {"what": "step", "recipe": name, "cudnn_benchmark": search, **found}
            if campaign.seconds_left < 0:
                return
        else:
            yield {"what": "profile", "recipe": name, "cudnn_benchmark": False, "by_kernel": _by_kernel(trainer)}


def _step_seconds(trainer: Trainer) -> Record:
    """Seconds of a step of each stage: in a training, where a GPU replays a captured graph, the best epoch's mean; and
    launched one kernel after another."""
    rows = trainer.run(seed=0, eval_every=0).rows
    stages: dict[Stage, float] = {}
    before = 0.0
    for epoch, row in zip(trainer.timeline.epochs, rows, strict=True):
        seconds = (row.seconds - before) / epoch.steps
        stages[epoch.stage] = min(seconds, stages.get(epoch.stage, seconds))
        before = row.seconds
    counts = trainer.timeline.steps_by_stage()
    found = [
        {
            "size": stage.size,
            "steps": counts[stage],
            "seconds": {
                "in training": seconds,
                "launched": _seconds_each(trainer.step_on_noise(stage), trainer.device),
            },
        }
        for stage, seconds in stages.items()
    ]
    return {"batch_size": trainer.recipe.batch_size, "steps": trainer.total_steps, "stages": found}


def _seconds_each(step, device: torch.device, calls: int = 5) -> float:
    """Seconds of a step when the host launches every kernel, the mean of a row of `calls` after two steps."""
    for _ in range(2):
        step()
    with Stopwatch(device) as stopwatch:
        for _ in range(calls):
            step()
    return stopwatch.seconds / calls


def _by_kernel(trainer: Trainer) -> list[Record]:
    """Milliseconds and calls of each kernel in one step, the longest first; on a CPU of each operation."""
    step = trainer.step_on_noise()
    step()
    on_cuda = trainer.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as profiler:
        step()
        if on_cuda:
            torch.cuda.synchronize(trainer.device)
    rows = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if microseconds > 0:
            rows.append({"name": event.key[:120], "calls": event.count, "ms": round(microseconds / 1000, 4)})
    return sorted(rows, key=lambda row: -row["ms"])[:_MOST_KERNELS]


def trainings(name: str) -> Part:
    """The part that trains recipe `name` from one seed after another, going on where an earlier call stopped."""

    def part(campaign: Campaign) -> Iterator[Record]:
        recipe = measured_recipes(campaign).get(name)
        if recipe is None:
            yield {"what": "skipped", "reason": f"there is no recipe {name}"}
            return
        began = time.monotonic()
        trainer = Trainer(recipe, dataset(campaign), campaign.device)
        done = {record["seed"] for record in campaign.records(name) if record.get("what") == "training"}
        longest, seed, count = 0.0, 0, 0
        while count == 0 or campaign.seconds_left > longest:
            while seed in done:
                seed += 1
            started = time.monotonic()
            run = trainer.run(seed, eval_every=0)
            done.add(seed)
            yield _training(campaign, name, recipe, run, first=count == 0, setup=started - began)
            count += 1
            if count > 1:
                longest = max(longest, time.monotonic() - started)
            if campaign.tiny and count == 2:
                return

    return part


def _training(campaign: Campaign, name: str, recipe: Recipe, run, first: bool, setup: float) -> Record:
    record = run.record
    kept = (
        "accuracy",
        "tta_accuracy",
        "tta_loss",
        "train_seconds",
        "time_seconds",
        "process_seconds",
        "steps",
        "dtype",
        "phases",
    )
    return {
        "what": "training",
        "recipe": name,
        "fields": dataclasses.asdict(recipe) if first else None,
        "seed": run.seed,
        "first_in_process": first,
        "setup_seconds": setup,
        **{key: record[key] for key in kept},
        "clocks": read_clocks(campaign.device.type),
    }
