"""The named recipes: each module of this package adds some."""

from __future__ import annotations

from fastcifar.recipes.recipe import Recipe
from fastcifar.registry import Registry

RECIPES: Registry[Recipe] = Registry("recipe", __name__)
"""The named recipes."""

SUMMARIES: dict[str, str] = {}
"""One line on each of `RECIPES`."""


def add_recipe(recipe: Recipe, summary: str) -> None:
    """Add `recipe` under its own name to the named ones, with one line on it. Raises UserError if the name is taken."""
    RECIPES.add(recipe.name, recipe)
    SUMMARIES[recipe.name] = summary


DEFAULT_RECIPE = Recipe.name
add_recipe(Recipe(), "10 epochs of the ResNet-9 at the end of 'How to train your ResNet', there 94.1% (Page 2019)")
