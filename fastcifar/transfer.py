"""What given weights bring with them to another training: their network and their normalization. Standard library only,
as the command line refuses by it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from fastcifar.errors import UserError, notify
from fastcifar.input import TORCHVISION, is_published, weights_file
from fastcifar.output import WEIGHTS, read_json, run_files, user_path
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.recipes.augmentation import NormalizeConfig
from fastcifar.recipes.networks import NetworkConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.record import RunRecord

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Of the images that torchvision's networks are trained on, 0 to 255 units."""


def recipe_for(weights: str | os.PathLike[str], recipe: Recipe | str | None = None) -> Recipe:
    """Return `recipe` for a training that begins with `weights`: with their network, and normalized as they were unless
    the recipe says how.

        train(recipe_for("runs/a", "finetune-adam"), init=WarmStart("runs/a", reset_head=None), freeze="backbone")

    weights: the folder of a saved run, whose record says both; torchvision:IMAGENET1K_V1, or its file
        (resnet18-f37072fd.pth), which is ResNet-18, with the mean and standard deviation of ImageNet; or another file
        of weights, of which the recipe says all, and a `Notice` how images are normalized.
    recipe: a recipe or its name; None: "finetune-sgd" without its normalization.

    Where the network normalizes ghost batches, the batch is made a multiple of them, and partial ones are dropped.
    Raises UserError where there are no such weights, and for a run of a network of the user's own.
    """
    found = with_weights(weights, recipe)
    say_normalization(weights, found)
    return found


def with_weights(weights: str | os.PathLike[str], recipe: Recipe | str | None) -> Recipe:
    """Return `recipe_for(weights, recipe)` and say nothing: the command line's flags may still change it."""
    if recipe is None:
        recipe = dataclasses.replace(get_recipe("finetune-sgd"), name="finetune", normalize=NormalizeConfig())
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if (record := _record_of(weights)) is None:
        if not is_published(weights_file(weights)):
            return recipe
        recipe = dataclasses.replace(recipe, network=ResNet18Config(stem="imagenet"))
        return _normalized(recipe, IMAGENET_MEAN, IMAGENET_STD)
    if record.network is not None:
        allowed = "train(..., model=, init=WarmStart(...)), or a file of weights with --network"
        raise UserError(f"{weights} holds a run of a network of its own; allowed: {allowed}")
    network, ghost = record.recipe.network, record.recipe.ghost_batch
    changes = {"network": network, "ensemble": record.recipe.ensemble}
    if ghost > 1:
        changes |= {"batch_size": max(ghost, recipe.batch_size // ghost * ghost), "drop_last": True}
    return _normalized(dataclasses.replace(recipe, **changes), record.dataset.mean, record.dataset.std)


def _record_file(weights: str | os.PathLike[str]) -> Path | None:
    """Return the record of the saved run that `weights` are of; None for a file alone. Raises UserError where there are
    no such weights."""
    file = weights_file(weights)
    if str(weights).startswith(TORCHVISION):
        return None
    record_file, _ = run_files(file.parent if file.name == WEIGHTS else user_path(weights, "the source of weights"))
    return record_file if record_file.is_file() else None


def _record_of(weights: str | os.PathLike[str]) -> RunRecord | None:
    """Return what `_record_file` holds."""
    file = _record_file(weights)
    return None if file is None else RunRecord.from_json(read_json(file, "the record"), str(file))


def say_normalization(weights: str | os.PathLike[str], recipe: Recipe) -> None:
    """Say in a `Notice` how `recipe` normalizes images, where `weights` are a file that does not say it."""
    if _record_file(weights) is not None or is_published(weights_file(weights)):
        return
    means = {"mean": recipe.normalize.mean, "standard deviation": recipe.normalize.std}
    said = " and ".join(
        f"{name} {', '.join(f'{value:g}' for value in values)}" if values else f"the data set's {name}"
        for name, values in means.items()
    )
    notify(f"{weights} does not say how its images were normalized: by {said} here, or as normalize.mean and .std say")


def refuse_other_side(weights: str | os.PathLike[str], network: NetworkConfig, side: int) -> None:
    """Raise UserError where `weights` are of a run on images of another side than `side`, and `network` takes one."""
    own = own_side(weights, network)
    if own not in (None, side):
        said = f"the weights in {weights} are of images of {own} pixels, and these have {side}"
        raise UserError(f"{said}; allowed: --resize {own}, as {network.kind} takes one side")


def own_side(weights: str | os.PathLike[str], network: NetworkConfig) -> int | None:
    """Return the one side in pixels of the images that `network` takes with `weights`, a saved run's; None: any, or
    unknown."""
    record = _record_of(weights) if network.one_side else None
    of_it = record is not None and record.network is None and record.recipe.network.kind == network.kind
    return record.dataset.side if record is not None and of_it else None


def _normalized(recipe: Recipe, mean: tuple[float, ...], std: tuple[float, ...]) -> Recipe:
    own = recipe.normalize
    return dataclasses.replace(recipe, normalize=NormalizeConfig(mean=own.mean or mean, std=own.std or std))
