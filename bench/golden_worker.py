"""The process of `bench.golden` that computes with the fastcifar of one checkout. Not for calling by hand.

It must work with every commit that may be compared: it uses what is stable, and says where a name has changed.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import fastcifar
import fastcifar.kernels
from bench.resident import Answer, serve
from fastcifar.data import Dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes import RECIPES, Recipe, quick
from fastcifar.start import ShrinkPerturb
from fastcifar.training import Run, Trainer
from fastcifar.training.timeline import Stage, Timeline

try:
    from fastcifar.training.rehearse import step_on_noise
except ImportError:  # before there was that module: a method of the trainer

    def step_on_noise(trainer: Trainer, stage: Stage) -> Callable[[], None]:
        return trainer.step_on_noise()


_TEST_SIZE = 40
_TRAIN_SIZE, _SIDE = 50_000, 32


def load(arguments: dict[str, Any]) -> tuple[dict[str, object], Answer]:
    """Return the files of `fastcifar` and `fastcifar.kernels` and the names of the recipes; and what answers requests.
    Raises UserError where the files are not the checkout's."""
    checkout = Path(arguments["checkout"])
    files = [Path(module.__file__).resolve() for module in (fastcifar, fastcifar.kernels)]
    for file in files:
        if not file.is_relative_to(checkout):
            raise UserError(f"{file} was imported; allowed: files in {checkout}")
    torch.set_num_threads(arguments["threads"])
    fastcifar.kernels.keep_freed_memory()  # as the command line does
    timed: dict[str, Trainer] = {}

    def answer(request: dict[str, Any]) -> dict[str, object]:
        recipe = dataclasses.replace(RECIPES[request["recipe"]], dtype=request["dtype"])
        train_size = request["train_size"]
        if request["part"] == "time":
            if recipe.name not in timed:
                timed.clear()
                timed[recipe.name] = Trainer(recipe, _images(recipe, train_size), "cpu")
            return {"stages": time_stages(timed[recipe.name], request["steps"])}
        if request["part"] == "steps":
            tensors = steps_of(dataclasses.replace(recipe, epochs=request["epochs"]), train_size)
        else:
            tensors = quick_of(recipe, train_size)
        torch.save(tensors, request["out"])
        return {}

    return {"files": [str(file) for file in files], "recipes": list(RECIPES)}, answer


def time_stages(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """Return the `size` of the images, the `steps` of a whole training on CIFAR-10 and the mean `seconds` of `steps`
    steps on noise, for each size that the training has."""
    whole = Timeline(trainer.recipe, _TRAIN_SIZE, _SIDE, trainer.network.frozen_from)
    found = []
    for size in dict.fromkeys(stage.size for stage in whole.steps_by_stage()):
        step = step_on_noise(trainer, next(stage for stage in trainer.timeline.steps_by_stage() if stage.size == size))
        start = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = (time.perf_counter() - start) / steps
        count = sum(count for stage, count in whole.steps_by_stage().items() if stage.size == size)
        found.append({"size": size, "steps": count, "seconds": seconds})
    return found


def steps_of(recipe: Recipe, train_size: int) -> dict[str, torch.Tensor]:
    """Return the `contents` of one training."""
    return contents(Trainer(recipe, _images(recipe, train_size), "cpu").run(seed=0, eval_every=1))


def _images(recipe: Recipe, train_size: int) -> Dataset:
    data = make_synthetic(train_size, _TEST_SIZE)
    side = getattr(recipe.network, "usual_side", 0)  # older checkouts have none
    return data.resize(side) if side else data


def quick_of(recipe: Recipe, train_size: int) -> dict[str, torch.Tensor]:
    """Return the `contents` of a quick training, and of another from its weights, shrunk and perturbed."""
    recipe, _ = quick(recipe)
    trainer = Trainer(recipe, _images(recipe, train_size), "cpu")
    first = trainer.run(seed=1, eval_every=1)
    tensors = contents(first)
    with tempfile.TemporaryDirectory() as folder:
        start = ShrinkPerturb(first.save(Path(folder) / "run"))
        second = trainer.run(seed=2, eval_every=1, init=start)
    return tensors | {f"warm {name}": tensor for name, tensor in contents(second).items()}


def contents(run: Run) -> dict[str, torch.Tensor]:
    """Return all that a training computes, in the order in which a difference would show: the steps taken, each
    epoch's figures, the evaluated weights and statistics, the logits on the test split, and the accuracies."""
    record = run.record
    steps = record["steps"] if isinstance(record, Mapping) else record.steps  # once a dictionary
    logits = run.tta_logits if hasattr(run, "tta_logits") else run.logits  # what they were called when all were such
    figures = {
        f"train_loss, train_accuracy and test_accuracy of epoch {row.epoch}": torch.tensor(
            [math.nan if value is None else value for value in (row.train_loss, row.train_accuracy, row.test_accuracy)],
            dtype=torch.float64,
        )
        for row in run.rows
    }
    return {
        "steps": torch.tensor(steps),
        **figures,
        **{f"state {name}": tensor.clone() for name, tensor in run.state.items()},
        "logits": logits.clone(),
        "accuracy and tta_accuracy": torch.tensor([run.accuracy, run.tta_accuracy], dtype=torch.float64),
    }


if __name__ == "__main__":
    serve(load)
