"""The recipes that the campaign measures, at the size asked for."""

from __future__ import annotations

import dataclasses

from bench.campaign.campaign import Campaign
from fastcifar.data import Dataset, load_dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import RECIPES, Recipe, quick

_MEASURED = ("davidnet", "speedrun94", "speedrun95", "speedrun96")
_TINY_IMAGES = 128


def measured_recipes(campaign: Campaign) -> dict[str, Recipe]:
    """The named recipes that race, by name; with `tiny` narrow, of one epoch and of batches of 32."""
    recipes = {name: RECIPES[name] for name in _MEASURED if name in RECIPES}
    return {name: shrink(recipe) for name, recipe in recipes.items()} if campaign.tiny else recipes


def recipes_by_batch(campaign: Campaign) -> dict[str, Recipe]:
    """`measured_recipes` and, after speedrun94, the same with larger batches: its own are small, for few operations,
    and may not fill a GPU."""
    recipes = {}
    for name, recipe in measured_recipes(campaign).items():
        recipes[name] = recipe
        for size in (64,) if campaign.tiny else (1024, 2048):
            if name == "speedrun94":
                recipes[f"{name} of {size}"] = dataclasses.replace(recipe, batch_size=size)
    return recipes


def shrink(recipe: Recipe) -> Recipe:
    """`recipe` as `--quick` has it, and smaller still."""
    narrow, _ = quick(recipe)
    return dataclasses.replace(narrow, epochs=1, batch_size=32)


def dataset(campaign: Campaign) -> Dataset:
    """CIFAR-10 on the campaign's device; with `tiny` a few synthetic images."""
    if campaign.tiny:
        return make_synthetic(_TINY_IMAGES, 64).to(campaign.device)
    return load_dataset("cifar10", campaign.data, campaign.device)


def noise(campaign: Campaign) -> Dataset:
    """Images for measuring steps: as many as CIFAR-10 has, or few, and of no meaning."""
    return make_synthetic(_TINY_IMAGES if campaign.tiny else 50_000, 10).to(campaign.device)
