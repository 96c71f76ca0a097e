"""What given weights bring with them to another training: their network and their normalization. Standard library only,
as the command line refuses by it."""

from __future__ import annotations

import dataclasses
import os

from fastcifar.errors import UserError
from fastcifar.input import TORCHVISION, weights_file
from fastcifar.output import WEIGHTS, read_json, run_files, user_path
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.recipes.augmentation import NormalizeConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.record import RunRecord

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Of the images that torchvision's networks are trained on, 0 to 255 units."""


def recipe_for(weights: str | os.PathLike[str], recipe: Recipe | str | None = None) -> Recipe:
    """Return `recipe` for a training that begins with `weights`: with their network, and normalized as they were unless
    the recipe says how.

        train(recipe_for("runs/a", "finetune-adam"), init=WarmStart("runs/a", reset_head=None), freeze="backbone")

    weights: the folder of a saved run, whose record says both; torchvision:IMAGENET1K_V1, which is ResNet-18, with the
        mean and standard deviation of ImageNet; or a file of weights, of which the recipe says all.
    recipe: a recipe or its name; None: "finetune-sgd" without its normalization.

    Where the network normalizes ghost batches, the batch is made a multiple of them, and partial ones are dropped.
    Raises UserError where there are no such weights, and for a run of a network of the user's own.
    """
    file = weights_file(weights)
    if recipe is None:
        recipe = dataclasses.replace(get_recipe("finetune-sgd"), name="finetune", normalize=NormalizeConfig())
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if str(weights).startswith(TORCHVISION):
        recipe = dataclasses.replace(recipe, network=ResNet18Config(stem="imagenet"))
        return _normalized(recipe, IMAGENET_MEAN, IMAGENET_STD)
    path = user_path(weights, "the source of weights")
    record_file = run_files(file.parent if file.name == WEIGHTS else path)[0]
    if not record_file.is_file():
        return recipe
    record = RunRecord.from_json(read_json(record_file, "the record"), str(record_file))
    if record.network is not None:
        allowed = "train(..., model=, init=WarmStart(...)), or a file of weights with --network"
        raise UserError(f"{path} holds a run of a network of its own; allowed: {allowed}")
    network, ghost = record.recipe.network, record.recipe.ghost_batch
    changes = {"network": network, "ensemble": record.recipe.ensemble}
    if ghost > 1:
        changes |= {"batch_size": max(ghost, recipe.batch_size // ghost * ghost), "drop_last": True}
    return _normalized(dataclasses.replace(recipe, **changes), record.dataset.mean, record.dataset.std)


def _normalized(recipe: Recipe, mean: tuple[float, ...], std: tuple[float, ...]) -> Recipe:
    own = recipe.normalize
    return dataclasses.replace(recipe, normalize=NormalizeConfig(mean=own.mean or mean, std=own.std or std))
