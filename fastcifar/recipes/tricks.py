"""The tricks of a recipe, and the changes that switch each off, read from the fields' declarations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastcifar.errors import UserError, did_you_mean
from fastcifar.recipes.declare import Checked, Kind, TrickDeclaration, declaration, sections_of
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.text import change
from fastcifar.recipes.transforms import TransformConfig

TTA = "tta"
"""The trick that is measured without further training: every run has an accuracy without test-time augmentation."""


def tricks(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return the tricks that `recipe` uses: `tricks[name]` are the changes that switch one off.

    Switch off one at a time: the rates stay as they are, tuned for all tricks together, so what is lost without one is
    at least what it is worth.
    """
    off: dict[str, dict[str, Any]] = {}
    for each in declared_tricks(recipe):
        if each.applies:
            off.setdefault(each.name, {}).update(each.declared.changes(recipe, each.path))
    whole = change(recipe, {})
    return {name: values for name, values in off.items() if change(recipe, values) != whole}


def choose_tricks(recipe: Recipe, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the tricks of `recipe` named in `only`, or all; see `tricks`. Raises UserError for any other name."""
    known = tricks(recipe)
    for name in only:
        if name not in known:
            allowed = ", ".join(known)
            raise UserError(f"{recipe.name} has no trick {name!r}{did_you_mean(name, known)}; allowed: {allowed}")
    return {name: values for name, values in known.items() if not only or name in only}


def refuse_without_tricks(recipe: Recipe, found: Mapping[str, object]) -> None:
    """Raise UserError where `found`, the tricks of `recipe` that are asked for, are none."""
    if not found:
        raise UserError(f"{recipe.name} uses no trick that can be switched off; allowed: a recipe that does")


@dataclass(frozen=True)
class FieldTrick:
    """A trick at a field, or at a section whose kind as a whole is one."""

    name: str
    path: str
    """Dotted name of the field or section."""
    section: Checked
    declared: TrickDeclaration
    value: Any
    """The field's value, or the section's kind."""

    @property
    def applies(self) -> bool:
        """True if it can be switched off here; a trick that is one value of its field needs that value, another one the
        field without which it does nothing."""
        needs = self.declared.needs
        return self.declared.of in (None, self.value) and (not needs or bool(getattr(self.section, needs)))


def declared_tricks(section: Checked, prefix: str = "") -> Iterator[FieldTrick]:
    """Give each trick that is declared in a section and those below it, on or off."""
    for path, each in sections_of(section, prefix):
        if isinstance(each, Kind) and each.off is not None:
            declared = TrickDeclaration(each.kind, each.off, each.source, why=each.why)
            yield FieldTrick(each.kind, path[:-1], each, declared, each.kind)
        for field in dataclasses.fields(each):
            default = each.kind if isinstance(each, TransformConfig) else field.name.replace("_", "-")
            for declared in declaration(field).tricks:
                value = getattr(each, field.name)
                yield FieldTrick(declared.name or default, f"{path}{field.name}", each, declared, value)
