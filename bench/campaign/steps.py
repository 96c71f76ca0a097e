"""Part `steps`: where the time of a recipe's step goes, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from bench.campaign.campaign import Campaign, Line
from bench.campaign.captured import require_capture
from bench.campaign.images import dataset
from bench.campaign.recipes import get_recipe
from fastcifar.training import Trainer
from fastcifar.training.rehearse import replay_on_noise, step_on_noise
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.timeline import Stage

_MOST_KERNELS = 40
_PROFILED = 5
"""Replays in a profile; with `tiny` one."""


def steps(campaign: Campaign, recipe: str) -> Iterator[Line]:
    """For each stage of the recipe the seconds of a step: in a training; replayed alone; launched kernel by kernel.
    Then its kernels, in replays of the captured step."""
    known = [(record["what"], record["stage"]) for record in campaign.records("steps") if record["recipe"] == recipe]
    trainer = Trainer(get_recipe(recipe, campaign.tiny), dataset(campaign), campaign.device)
    stages = trainer.timeline.steps_by_stage()
    wanted = [(what, number) for what in ("step", "profile") for number in range(len(stages))]
    if not [one for one in wanted if one not in known]:
        return
    in_training = _in_training(campaign, recipe, trainer)
    names = {
        stage: {"recipe": recipe, "stage": number, "size": stage.size, "steps": count, "of": trainer.total_steps}
        for number, (stage, count) in enumerate(stages.items())
    }
    for number, (stage, name) in enumerate(names.items()):
        if ("step", number) not in known:
            seconds = {
                "in training": in_training[stage],
                "replayed": _seconds_each(replay_on_noise(trainer, stage), campaign),
                "launched": _seconds_each(step_on_noise(trainer, stage), campaign),
            }
            yield {"what": "step", **name, "batch_size": trainer.recipe.batch_size, "seconds": seconds}
    for number, (stage, name) in enumerate(names.items()):
        if ("profile", number) not in known and (campaign.seconds_left > 0 or campaign.tiny):
            yield {
                "what": "profile",
                **name,
                **_profile(replay_on_noise(trainer, stage), trainer.device, 1 if campaign.tiny else _PROFILED),
            }


def _in_training(campaign: Campaign, recipe: str, trainer: Trainer) -> dict[Stage, float]:
    """Seconds of a step of each stage in a training: of its best epoch the mean."""
    run = trainer.run(seed=0, eval_every=0)
    require_capture(campaign, recipe, run.record.captured, run.record.not_captured)
    seconds: dict[Stage, float] = {}
    before = 0.0
    for epoch, row in zip(trainer.timeline.epochs, run.rows, strict=True):
        mean = (row.seconds - before) / epoch.steps
        seconds[epoch.stage] = min(mean, seconds.get(epoch.stage, mean))
        before = row.seconds
    return seconds


def _seconds_each(step: Callable[[], None], campaign: Campaign) -> float:
    """Seconds of a step: the best of the means of some rows of steps, after two steps that are not counted."""
    calls, rows = (1, 1) if campaign.tiny else (20, 3)
    for _ in range(2):
        step()
    best = float("inf")
    for _ in range(rows):
        with Stopwatch(campaign.device) as stopwatch:
            for _ in range(calls):
                step()
        best = min(best, stopwatch.seconds / calls)
    return best


def _profile(step: Callable[[], None], device: torch.device, replays: int) -> Line:
    """Milliseconds and calls of each kernel in a step, the longest first, and of all together; on a CPU of each
    operation."""
    step()
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as profiler:
        for _ in range(replays):
            step()
        if on_cuda:
            torch.cuda.synchronize(device)
    rows = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if microseconds > 0 and (not on_cuda or event.device_type == torch.autograd.DeviceType.CUDA):
            rows.append(
                {
                    "name": event.key[:120],
                    "calls": event.count / replays,
                    "ms": round(microseconds / 1000 / replays, 5),
                }
            )
    rows.sort(key=lambda row: -row["ms"])
    return {
        "replays": replays,
        "ms": round(sum(row["ms"] for row in rows), 4),
        "launches": sum(row["calls"] for row in rows),
        "by_kernel": rows[:_MOST_KERNELS],
    }
