"""The process of `bench.minutes` that takes steps of a recipe. Not for calling by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from bench.resident import Answer, serve
from bench.timing import seconds_of
from fastcifar.data.synthetic import make_synthetic
from fastcifar.kernels import keep_freed_memory
from fastcifar.recipes import recipe_from_dict
from fastcifar.training import Trainer, evaluate
from fastcifar.training.rehearse import step_on_noise
from fastcifar.training.timeline import Timeline

TRAIN_IMAGES, TEST_IMAGES, SIDE = 50_000, 10_000, 32  # of CIFAR-10
_EVALUATED = 1000


def load(arguments: dict[str, Any]) -> tuple[dict[str, object], Answer]:
    """Return the facts of this process, and what answers with the `seconds` of a whole training, predicted from one
    step of each stage and an evaluation of some images."""
    keep_freed_memory()  # as the command line does
    recipe = recipe_from_dict(arguments["recipe"], "recipe")
    recipe = dataclasses.replace(recipe, evaluate=dataclasses.replace(recipe.evaluate, batch_size=_EVALUATED))
    trainer = Trainer(recipe, make_synthetic(4 * recipe.batch_size, _EVALUATED), "cpu")
    device, counts = trainer.device, Timeline(recipe, TRAIN_IMAGES, SIDE, trainer.network.frozen_from).steps_by_stage()
    steps = {stage: step_on_noise(trainer, stage) for stage in counts}

    def evaluation() -> None:
        evaluate(trainer.evaluated, trainer.dataset.test, recipe.evaluate)

    def answer(_: dict[str, Any]) -> dict[str, object]:
        seconds = TEST_IMAGES / _EVALUATED * seconds_of(evaluation, device)
        for stage, step in steps.items():
            trainer.enter(stage)
            seconds += counts[stage] * seconds_of(step, device)
        return {"seconds": seconds}

    answer({})  # makes what is made at a first call
    return {
        "dtype": str(trainer.dtype).removeprefix("torch."),
        "level": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "steps": sum(counts.values()),
    }, answer


if __name__ == "__main__":
    serve(load)
