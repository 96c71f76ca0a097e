"""The sections `redo` and `continual_backprop` of a recipe: hidden units that do little begin again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastcifar.errors import UserError
from fastcifar.recipes.declare import Checked, setting, trick

if TYPE_CHECKING:
    from fastcifar.recipes.recipe import Recipe


@dataclass(frozen=True)
class ReDoConfig(Checked):
    """Recycling of dormant units (Sokar 2023, ReDo): those that are hardly active get fresh incoming weights, and
    outgoing ones of 0."""

    section: ClassVar[str] = "redo"

    every: int = trick(
        0,
        off=0,
        at_least=0,
        unit="epochs",
        name="redo",
        source="Sokar 2023",
        why="Units that are never active take part in nothing; begun again, they can.",
    )
    """Epochs from one look at the units to the next, the last epoch's end left out; 0: none."""
    threshold: float = setting(0.025, at_least=0, below=1)
    """A unit is dormant whose mean magnitude is at most this share of the mean of its layer's."""
    images: int = setting(512, at_least=1, unit="images")
    """Take the magnitudes from so many training images, the first ones, unchanged, in evaluation mode."""


@dataclass(frozen=True)
class ContinualBackpropConfig(Checked):
    """Continual backprop (Dohare 2023): at every step a small share of the units, the least useful of those that are
    not young, gets fresh incoming weights, and outgoing ones of 0."""

    section: ClassVar[str] = "continual_backprop"

    rate: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        at_most=1,
        name="continual-backprop",
        source="Dohare 2023",
        why=(
            "A small number of little-used units that begin again all the time keeps a network as able to "
            "learn as a fresh one."
        ),
    )
    """Share of a layer's units that is replaced in a step (Dohare: 1e-4 to 1e-5); 0: none."""
    maturity: int = setting(100, at_least=1, unit="steps")
    """Steps for which a fresh unit is left alone."""
    decay: float = setting(0.99, at_least=0, below=1, from_one=True)
    """Decay by step of the moving average of a unit's magnitude, which its utility is computed from."""


def replaces_units(recipe: Recipe) -> str:
    """Return the field by which `recipe` replaces units, with its value; empty: by none."""
    redo, continual = recipe.redo, recipe.continual_backprop
    on = f"continual_backprop.rate is {continual.rate}" if continual.rate else ""
    return f"redo.every is {redo.every}" if redo.every else on


def refuse_replacement(recipe: Recipe) -> None:
    """Raise UserError for what units are not replaced with."""
    if not (on := replaces_units(recipe)):
        return
    for name, value, usual in (
        ("continual_backprop.rate", recipe.continual_backprop.rate if recipe.redo.every else 0, 0),
        ("freeze", recipe.freeze, "none"),
        ("ensemble.members", recipe.ensemble.members, 1),
        ("compile", recipe.compile if recipe.continual_backprop.rate else "off", "off"),
    ):
        if value != usual:
            raise UserError(f"{on}, and {name} is {value}; allowed: with it {name} {usual}")
