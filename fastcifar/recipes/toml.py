"""Recipes as TOML files: `to_toml` writes one with each field's docstring above it, `read_toml` reads it back equal.

A file may leave fields out: they keep DavidNet's values. Values are numbers, strings, booleans and lists of numbers, so
a few lines write them; reading is the standard library's (`tomli` before Python 3.11).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastcifar.errors import UserError
from fastcifar.recipes.checked import Checked
from fastcifar.recipes.fields import allowed, did_you_mean, field_docs
from fastcifar.recipes.recipe import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def to_toml(recipe: Recipe) -> str:
    """The recipe as the text of a TOML file; `recipe_from_dict(tomllib.loads(text))` equals `recipe`."""
    return "\n".join(_lines(recipe)) + "\n"


def read_toml(path: str | Path) -> Recipe:
    """The recipe in a TOML file. A file that does not name its recipe names it after itself.

    Raises UserError, with the file and the field, for a file that cannot be read or is not TOML, an unknown field, a
    wrong type and a value out of range.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror or error}; allowed: a TOML file") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested beyond reason
        raise UserError(f"{path} is not a TOML file: {' '.join(str(error).split())}") from None
    return recipe_from_dict({"name": path.stem, **values}, source=str(path))


def recipe_from_dict(values: dict[str, Any], source: str = "recipe") -> Recipe:
    """The recipe in nested dictionaries, as TOML and JSON files hold it; fields left out keep DavidNet's values.

    Raises UserError, which names `source` and the field, for an unknown field, a wrong type and a value out of range.
    """
    try:
        return _section(Recipe, values, prefix="")
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _lines(section: Checked, path: str = "") -> list[str]:
    docs = field_docs(type(section))
    lines = []
    for field in dataclasses.fields(section):  # a TOML section's own fields must stand before its subsections
        value = getattr(section, field.name)
        if not isinstance(value, Checked):
            lines += textwrap.wrap(docs.get(field.name, ""), 100, initial_indent="# ", subsequent_indent="# ")
            lines.append(f"{field.name} = {_write(value)}")
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, Checked):
            name = f"{path}{field.name}"
            lines += ["", f"[{name}]", *_lines(value, f"{name}.")]
    return lines


def _write(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # TOML's escapes are JSON's
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_write, value)) + "]"
    return repr(value)


def _section(cls: type, values: object, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{prefix[:-1]} is {values!r}; allowed: a section of fields")
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            hint = did_you_mean(name, names)
            raise UserError(f"unknown field {prefix}{name}{hint or '; allowed: ' + ', '.join(names)}")
    return cls(**{name: _value(hints[name], value, f"{prefix}{name}") for name, value in values.items()})


def _value(hint: Any, value: object, path: str) -> Any:
    """`value` as the type `hint`: integers may stand for floats and lists for tuples, nothing else is converted."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _section(hint, value, f"{path}.")
    if get_origin(hint) is Literal and value in get_args(hint):
        return value
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = get_args(hint)
        if Ellipsis in kinds or len(kinds) == len(value):
            return tuple(_value(kinds[0], item, path) for item in value)
    if hint is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is hint:
        return value
    raise UserError(f"{path} is {value!r}; allowed: {allowed(hint)}")
