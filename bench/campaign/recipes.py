"""The recipes that the campaign measures, at the size asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bench.campaign.campaign import Campaign
from fastcifar.recipes import RECIPES, Recipe, change, quick, with_batch_size

_LARGER = with_batch_size(RECIPES["speedrun94"], 1536)
"""speedrun94 in batches as large as e1's, which may fill a GPU better; what goes with them is a rate of 0.2255."""
_E1_BATCHES: Mapping[str, Any] = {
    "batch_size": _LARGER.batch_size,
    "optimizer": dataclasses.asdict(
        dataclasses.replace(_LARGER.optimizer, lr=0.2255, filter_decay=0.2255 * _LARGER.optimizer.weight_decay)
    ),
}
OTHER_SEARCH = "speedrun94-unsearched" if RECIPES["speedrun94"].cudnn_search else "speedrun94-searched"
"""speedrun94 with cuDNN's search for the fastest convolutions where the recipe is without, and the other way round."""
VARIANTS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "speedrun94": ("speedrun94", {}),
    "davidnet": ("davidnet", {}),
    "speedrun94-next": ("speedrun94", {"epochs": 10}),  # what it was when its records got the name
    "speedrun94-1536": ("speedrun94", _E1_BATCHES),
    "speedrun94-55": ("speedrun94", {"select.keep": 0.55}),
    "speedrun94-in-turn": ("speedrun94", {"optimizer.overlap": False}),
    OTHER_SEARCH: ("speedrun94", {"cudnn_search": not RECIPES["speedrun94"].cudnn_search}),
    "davidnet-searched": ("davidnet", {"cudnn_search": True}),
    "davidnet-alternating": ("davidnet", {"augment.flip": "alternating", "evaluate.tta": "flip-crop"}),
    "speedrun95": ("speedrun95", {}),
    "speedrun96": ("speedrun96", {}),
    "warmstart-resnet18": ("warmstart-resnet18", {"epochs": 2}),
    "warmstart-mlp": ("warmstart-mlp", {"epochs": 2}),
}
"""`VARIANTS[name]`: a recipe and its changes, by dotted names."""
REST = ("speedrun95", "speedrun96", "warmstart-resnet18", "warmstart-mlp")
"""Recipes that the smoke trains once, the last two briefly. warmstart-narrow's optimizer, torch's, is not captured."""
MAIN = ("speedrun94", "davidnet")  # recipes whose convolutions and kernels are measured one by one


def get_recipe(name: str, tiny: bool) -> Recipe:
    """Return the recipe of that name in `VARIANTS`; with `tiny` narrow, of one epoch and of batches of 32."""
    base, changes = VARIANTS[name]
    recipe = change(RECIPES[base], {"name": name, **changes}, name)
    return shrink(recipe) if tiny else recipe


def main_recipes(campaign: Campaign) -> dict[str, Recipe]:
    """Return the recipes in `MAIN`, by name."""
    return {name: get_recipe(name, campaign.tiny) for name in MAIN}


def shrink(recipe: Recipe) -> Recipe:
    """Return `recipe` as `--quick` has it, and smaller still."""
    narrow, _ = quick(recipe)
    return dataclasses.replace(narrow, epochs=1, batch_size=32)
