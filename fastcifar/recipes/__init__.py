"""Training methods as values: the recipe, the named ones, and their TOML files. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fastcifar.errors import UserError
from fastcifar.recipes.fields import did_you_mean
from fastcifar.recipes.recipe import (
    Augment,
    EMAConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    Schedule,
)
from fastcifar.recipes.toml import read_toml, recipe_from_dict, to_toml

__all__ = [
    "RECIPES",
    "SUMMARIES",
    "Augment",
    "EMAConfig",
    "EvaluateConfig",
    "ModelConfig",
    "OptimConfig",
    "Recipe",
    "Schedule",
    "get_recipe",
    "quick",
    "read_toml",
    "recipe_from_dict",
    "to_toml",
]

RECIPES: dict[str, Recipe] = {"davidnet": Recipe()}
"""The named recipes."""

SUMMARIES: dict[str, str] = {
    "davidnet": "94.1% in 10 epochs: the ResNet-9 at the end of 'How to train your ResNet' (Page 2019)",
}
"""One line on each named recipe."""

QUICK_WIDTH_DIVISOR = 4
QUICK_EPOCHS = 3
QUICK_BATCH_SIZE = 128
QUICK_EMA_DECAY = 0.95
QUICK_TRAIN_SIZE = 8_000
"""What `--quick` makes of a recipe, sized to end in under 60 s on two CPU cores: the widths divided, at most as many
epochs, images and images per step, and an average that forgets at least as fast, there being fewer steps."""


def get_recipe(name_or_path: str) -> Recipe:
    """A recipe by its name in `RECIPES` or by the path of its TOML file. Raises UserError for neither."""
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        return read_toml(path)
    hint = did_you_mean(name_or_path, RECIPES)
    raise UserError(f"unknown recipe {name_or_path!r}{hint}; allowed: {', '.join(RECIPES)}, or a .toml file's path")


def quick(recipe: Recipe) -> tuple[Recipe, int]:
    """A narrower and shorter `recipe` and the number of training images for it: the same path in under a minute.

    Steps are smaller so that there are enough of them, and the learning rate smaller in proportion.
    """
    ghost = recipe.model.ghost_batch or 1
    batch_size = min(recipe.batch_size, max(ghost, QUICK_BATCH_SIZE // ghost * ghost))
    widths = tuple(max(1, width // QUICK_WIDTH_DIVISOR) for width in recipe.model.widths)
    smaller = dataclasses.replace(
        recipe,
        epochs=min(recipe.epochs, QUICK_EPOCHS),
        batch_size=batch_size,
        model=dataclasses.replace(recipe.model, widths=widths),
        optim=dataclasses.replace(recipe.optim, lr=recipe.optim.lr * batch_size / recipe.batch_size),
        ema=dataclasses.replace(recipe.ema, decay=min(recipe.ema.decay, QUICK_EMA_DECAY)),
    )
    return smaller, QUICK_TRAIN_SIZE
