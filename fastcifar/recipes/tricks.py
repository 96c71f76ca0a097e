"""What of a recipe is a trick that can be switched off, and how: read from the fields' declarations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastcifar.errors import UserError, did_you_mean
from fastcifar.recipes.declare import Checked, Kind, TrickDeclaration, declaration
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.text import change
from fastcifar.recipes.transforms import TransformConfig

TTA = "tta"
"""The trick whose worth needs no further training: every run says its accuracy without test-time augmentation too."""


def tricks(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return the tricks that `recipe` uses, by name, each with the fields that switch it off and their values then.

    One at a time: the rates stay as they are, tuned for all tricks together, and so what is lost without one is at
    least what it is worth.
    """
    off: dict[str, dict[str, Any]] = {}
    for each in declared_tricks(recipe):
        if each.applies:
            off.setdefault(each.name, {}).update(each.trick.changes(recipe, each.path))
    whole = change(recipe, {})
    return {name: values for name, values in off.items() if change(recipe, values) != whole}


def choose_tricks(recipe: Recipe, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the tricks of `recipe` that are named in `only`, or all; see `tricks`. Raises UserError for any other
    name."""
    known = tricks(recipe)
    for name in only:
        if name not in known:
            allowed = ", ".join(known)
            raise UserError(f"{recipe.name} has no trick {name!r}{did_you_mean(name, known)}; allowed: {allowed}")
    return {name: values for name, values in known.items() if not only or name in only}


@dataclass(frozen=True)
class Declared:
    """A trick where it is declared."""

    name: str
    path: str
    """Its field's dotted name; of a kind that is one as a whole, the section's."""
    section: Checked
    trick: TrickDeclaration
    value: Any
    """The field's."""

    @property
    def applies(self) -> bool:
        """Whether it can be switched off here: a trick that is one value of its field only where it has that value."""
        return self.trick.of in (None, self.value)


def declared_tricks(section: Checked, prefix: str = "") -> Iterator[Declared]:
    """Give each trick that is declared in a section and those below it, also those that are off."""
    if isinstance(section, Kind) and section.off is not None:
        trick = TrickDeclaration(section.kind, section.off, section.source)
        yield Declared(section.kind, prefix.removesuffix("."), section, trick, section.kind)
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, Checked):
            yield from declared_tricks(value, f"{prefix}{field.name}.")
        for trick in declaration(field).tricks:
            whole = section.kind if isinstance(section, TransformConfig) else field.name.replace("_", "-")
            yield Declared(trick.name or whole, f"{prefix}{field.name}", section, trick, value)
