"""The recipes that the campaign measures, at the size asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bench.campaign.campaign import Campaign
from fastcifar.recipes import RECIPES, Recipe, quick
from fastcifar.recipes.change import change


def _of_batch(size: int) -> dict[str, Any]:
    """The settings of speedrun94 for another batch: rates and decay in proportion to it, but for Muon's own rate."""
    optim, ratio = RECIPES["speedrun94"].optim, size / RECIPES["speedrun94"].batch_size
    scaled = {f"optim.{name}": getattr(optim, name) * ratio for name in ("head_lr", "bias_lr", "weight_decay")}
    return {"batch_size": size, **scaled}


OTHER_SEARCH = "speedrun94-unsearched" if RECIPES["speedrun94"].cudnn_search else "speedrun94-searched"
"""speedrun94 with cuDNN's search for the fastest convolutions where the recipe is without, and the other way round."""
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "speedrun94": ("speedrun94", {}),
    "davidnet": ("davidnet", {}),
    "speedrun94-1024": ("speedrun94", _of_batch(1024)),
    "speedrun94-1536": ("speedrun94", _of_batch(1536)),
    OTHER_SEARCH: ("speedrun94", {"cudnn_search": not RECIPES["speedrun94"].cudnn_search}),
    "speedrun95": ("speedrun95", {}),
    "speedrun96": ("speedrun96", {}),
}
"""By name: a recipe and what is changed in it, by dotted names. speedrun94's own batches are small, for few operations,
and may not fill a GPU."""
MAIN = ("speedrun94", "davidnet")
"""Those whose steps are taken apart: convolutions and kernels at their shapes."""


def get_recipe(name: str, tiny: bool) -> Recipe:
    """The recipe of that name in `VARIANTS`; with `tiny` narrow, of one epoch and of batches of 32."""
    base, changes = VARIANTS[name]
    recipe = change(RECIPES[base], {"name": name, **changes}, name)
    return shrink(recipe) if tiny else recipe


def main_recipes(campaign: Campaign) -> dict[str, Recipe]:
    """The recipes in `MAIN`."""
    return {name: get_recipe(name, campaign.tiny) for name in MAIN}


def shrink(recipe: Recipe) -> Recipe:
    """`recipe` as `--quick` has it, and smaller still."""
    narrow, _ = quick(recipe)
    return dataclasses.replace(narrow, epochs=1, batch_size=32)
