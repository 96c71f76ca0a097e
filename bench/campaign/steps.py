"""Part `steps`: the time of a recipe's step, stage by stage and kernel by kernel."""

from __future__ import annotations

from collections.abc import Iterator

from bench.campaign.campaign import Campaign, Line
from bench.campaign.data import noise
from bench.campaign.recipes import get_recipe
from bench.step import profile_step
from bench.timing import best_seconds
from fastcifar.training import Trainer
from fastcifar.training.rehearse import replay_on_noise, step_on_noise
from fastcifar.training.timeline import Stage

_MOST_KERNELS = 40
_PROFILED = 5  # replays in a profile; with `tiny` one


def steps(campaign: Campaign, recipe: str) -> Iterator[Line]:
    """Time a step of each stage of the recipe: in a training on noise; replayed alone; launched kernel by kernel. Then
    its kernels, in replays of the captured step."""
    known = [(record["what"], record["stage"]) for record in campaign.records("steps") if record["recipe"] == recipe]
    trainer = Trainer(get_recipe(recipe, campaign.tiny), noise(campaign), campaign.device)
    stages = trainer.timeline.steps_by_stage()
    wanted = [(what, number) for what in ("step", "profile") for number in range(len(stages))]
    if not [one for one in wanted if one not in known]:
        return
    in_training = _in_training(campaign, recipe, trainer)
    calls, rows = (1, 1) if campaign.tiny else (20, 3)
    names = {
        stage: {"recipe": recipe, "stage": number, "size": stage.size, "steps": count, "of": trainer.total_steps}
        for number, (stage, count) in enumerate(stages.items())
    }
    for number, (stage, name) in enumerate(names.items()):
        if ("step", number) not in known:
            seconds = {"in training": in_training[stage]}
            for way, make in (("replayed", replay_on_noise), ("launched", step_on_noise)):
                step = make(trainer, stage)
                seconds[way] = best_seconds(step, campaign.device, calls, rows, captured=False)
            yield {"what": "step", **name, "batch_size": trainer.recipe.batch_size, "seconds": seconds}
    for number, (stage, name) in enumerate(names.items()):
        if ("profile", number) not in known and (campaign.seconds_left > 0 or campaign.tiny):
            replays = 1 if campaign.tiny else _PROFILED
            found = profile_step(replay_on_noise(trainer, stage), campaign.device, replays)
            sums = {"ms": round(sum(row["ms"] for row in found), 4), "launches": sum(row["calls"] for row in found)}
            yield {"what": "profile", **name, "replays": replays, **sums, "by_kernel": found[:_MOST_KERNELS]}


def _in_training(campaign: Campaign, recipe: str, trainer: Trainer) -> dict[Stage, float]:
    """Return the seconds of a step of each stage in a training: the mean of its best epoch."""
    run = trainer.run(seed=0, eval_every=0)
    campaign.require_capture(recipe, run.record.captured, run.record.not_captured)
    seconds: dict[Stage, float] = {}
    before = 0.0
    for epoch, row in zip(trainer.timeline.epochs, run.rows, strict=True):
        mean = (row.seconds - before) / epoch.steps
        seconds[epoch.stage] = min(mean, seconds.get(epoch.stage, mean))
        before = row.seconds
    return seconds
