"""Training methods as values: the recipe, its sections, the named ones, and their TOML files. Standard library only."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.output import user_path
from fastcifar.recipes.augmentation import Augment, MixConfig, NormalizeConfig
from fastcifar.recipes.averages import AverageConfig, EMAConfig, LookaheadConfig
from fastcifar.recipes.declare import Checked, declaration, setting, trick
from fastcifar.recipes.ensemble import EnsembleConfig
from fastcifar.recipes.evaluation import EvaluateConfig
from fastcifar.recipes.loading import LoadingConfig
from fastcifar.recipes.named import DEFAULT_RECIPE, RECIPES, SUMMARIES
from fastcifar.recipes.networks import NETWORKS, NetworkConfig, network
from fastcifar.recipes.optimizers import OPTIMIZERS, OptimizerConfig, optimizer
from fastcifar.recipes.precision import LossScalingConfig
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.replacement import ContinualBackpropConfig, ReDoConfig
from fastcifar.recipes.schedule import Schedule
from fastcifar.recipes.selection import SelectConfig
from fastcifar.recipes.text import change, read_toml, recipe_from_dict, to_toml
from fastcifar.recipes.transforms import TRANSFORMS, TransformConfig, Transforms, transform
from fastcifar.recipes.transforms.color import ColorJitterConfig, GrayscaleConfig, RandAugmentConfig
from fastcifar.recipes.transforms.gaussian_blur import GaussianBlurConfig
from fastcifar.recipes.transforms.random_erasing import RandomErasingConfig

__all__ = [
    "DEFAULT_RECIPE",
    "NETWORKS",
    "OPTIMIZERS",
    "RECIPES",
    "SUMMARIES",
    "TRANSFORMS",
    "Augment",
    "AverageConfig",
    "ColorJitterConfig",
    "ContinualBackpropConfig",
    "EMAConfig",
    "EnsembleConfig",
    "EvaluateConfig",
    "GaussianBlurConfig",
    "GrayscaleConfig",
    "LoadingConfig",
    "LookaheadConfig",
    "LossScalingConfig",
    "MixConfig",
    "NetworkConfig",
    "NormalizeConfig",
    "OptimizerConfig",
    "RandAugmentConfig",
    "RandomErasingConfig",
    "ReDoConfig",
    "Recipe",
    "Schedule",
    "SelectConfig",
    "TransformConfig",
    "Transforms",
    "change",
    "get_recipe",
    "label",
    "network",
    "network_of",
    "optimizer",
    "quick",
    "read_toml",
    "recipe_from_dict",
    "setting",
    "to_toml",
    "transform",
    "trick",
    "with_batch_size",
]

QUICK_WIDTH_DIVISOR = 4
QUICK_EPOCHS = 3
QUICK_BATCH_SIZE = 128
QUICK_EMA_DECAY = 0.95
QUICK_TRAIN_SIZE = 8_000
"""The limits of `--quick`: the divisor of the widths, and the largest number of epochs, images per step, decay of the
average (there are fewer steps to average) and training images."""


def get_recipe(name_or_path: str) -> Recipe:
    """Return a recipe by its name in `RECIPES` or by the path of its TOML file. Raises UserError if there is none."""
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    path = user_path(name_or_path, "the recipe")
    if path.suffix == ".toml" or path.is_file():
        return read_toml(path)
    hint = did_you_mean(name_or_path, RECIPES)
    raise UserError(
        f"unknown recipe {brief(name_or_path)}{hint}; allowed: {', '.join(RECIPES)}, or a .toml file's path"
    )


def label(recipe: Recipe) -> str:
    """Return what a run of `recipe` is called: its name and, where they are of another kind than in the named recipe of
    that name, its network and optimizer, as in "speedrun94-Adam". A kind that begins with the name stands for both."""
    named = RECIPES.get(recipe.name, recipe)
    pairs = ((getattr(recipe, section).kind, getattr(named, section).kind) for section in ("network", "optimizer"))
    kinds = [kind for kind, usual in pairs if kind != usual]
    return "-".join([*[recipe.name] * (not kinds or not kinds[0].startswith(f"{recipe.name}-")), *kinds])


def network_of(recipe: Recipe, kind: str) -> NetworkConfig:
    """Return a network of this kind for `recipe`: its own, else that of the first named recipe that uses one, else the
    kind's defaults. Raises UserError for an unknown kind."""
    used = (each.network for each in (recipe, *RECIPES.values()) if each.network.kind == kind)
    return next(used, None) or NETWORKS[kind]()


def quick(recipe: Recipe) -> tuple[Recipe, int]:
    """Return a narrower and shorter `recipe` and the number of training images for it: it runs the same code, in
    less time.

    Batches are smaller, so that there are enough steps, and settings that are declared in proportion to the batch
    (rates, or the share of a weight that a step removes) are smaller with them.
    """
    ghost = recipe.ghost_batch
    batch_size = min(recipe.batch_size, max(ghost, QUICK_BATCH_SIZE // ghost * ghost))
    smaller = dataclasses.replace(
        with_batch_size(recipe, batch_size),
        epochs=min(recipe.epochs, QUICK_EPOCHS),
        network=narrow(recipe.network),
        ema=dataclasses.replace(recipe.ema, decay=min(recipe.ema.decay, QUICK_EMA_DECAY)),
    )
    return smaller, QUICK_TRAIN_SIZE


def with_batch_size(recipe: Recipe, batch_size: int, factor: float = 1.0) -> Recipe:
    """Return `recipe` with this batch size, and with the settings that are declared in proportion to the batch, such as
    rates, at `factor` times as much for each image. Raises UserError where a setting does not allow that."""
    ratio = factor * batch_size / recipe.batch_size
    rates = {name: value * ratio for name, value in _marked(recipe.optimizer, "with_batch").items()}
    optimizer = dataclasses.replace(recipe.optimizer, **rates)
    return dataclasses.replace(recipe, **batches(recipe, batch_size), optimizer=optimizer)


def batches(recipe: Recipe, batch_size: int) -> dict[str, Any]:
    """Return the fields of `recipe` with this batch size, and with early batches in proportion."""
    ghost = recipe.ghost_batch
    early = (each * batch_size // recipe.batch_size // ghost * ghost for each in recipe.early_batches)
    return {"batch_size": batch_size, "early_batches": tuple(max(ghost, each) for each in early)}


def narrow(network: NetworkConfig) -> NetworkConfig:
    """Return `network` at a quarter of its width."""

    def narrower(width: Any) -> Any:
        if isinstance(width, tuple):
            return tuple(map(narrower, width))
        return max(1, width // QUICK_WIDTH_DIVISOR) if width else 0

    widths = {name: narrower(width) for name, width in _marked(network, "width").items()}
    return dataclasses.replace(network, **widths)


def _marked(section: Checked, mark: str) -> dict[str, Any]:
    """Return the values of the fields that are declared with `mark`, by name."""
    fields = dataclasses.fields(section)
    return {field.name: getattr(section, field.name) for field in fields if getattr(declaration(field), mark)}
