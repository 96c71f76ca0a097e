"""A recipe with other values in some fields, named as on the command line and in TOML files: `optim.lr`, `epochs`."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastcifar.errors import UserError
from fastcifar.recipes.checked import Checked
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.toml import recipe_from_dict

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def change(recipe: Recipe, values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """`recipe` with `values` in the fields with these dotted names, checked as those of a file are; a value may be a
    section, whole or in part, and "optimizer" is another word for `optim`.

    Raises UserError, which names `source` and the field, for an unknown field, a wrong type and a value out of range.
    """
    fields = dataclasses.asdict(recipe)
    for path, value in values.items():
        *sections, name = re.sub(r"^optimizer(?=\.|$)", "optim", path).split(".")
        inside = fields
        for section in sections:
            inside = inside.setdefault(section, {})
            if not isinstance(inside, dict):
                raise UserError(f"{source}: {section} in {path} is no section; allowed: a field such as optim.lr")
        value = dataclasses.asdict(value) if isinstance(value, Checked) else value
        before = inside.get(name)  # a section in part keeps its other fields
        inside[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, Mapping) else value
    return recipe_from_dict(fields, source)


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every value in nested dictionaries with its dotted name."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, inner in value.items():
        yield from leaves(inner, f"{prefix}.{name}" if prefix else name)


def read_changes(words: Iterable[str]) -> dict[str, Any]:
    """The fields and values in words such as `optim.lr=0.2`, `augment.flip=none` and `model.widths=[8, 16, 32, 64]`.

    A value is TOML's; what TOML does not know is taken as a word. Raises UserError for a word of another form.
    """
    changes = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not (path and equals and text):
            raise UserError(f"{word!r} sets no field; allowed: FIELD=VALUE, as in optim.lr=0.2")
        try:
            changes[path.replace("-", "_")] = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            changes[path.replace("-", "_")] = text
    return changes
