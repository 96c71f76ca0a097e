"""Recipes and their fields as text: one grammar for TOML files, FIELD=VALUE words, flags and keyword arguments.

A value is TOML's: a number, true or false, a list in brackets, a word in quotes. On the command line a word needs no
quotes, and a list may be written as several words, or as one word with spaces. A field goes by its dotted name,
`optimizer.lr`. The kind of an open section is its field `kind`, or the section's own value: `network = "mlp"` takes
that kind with its defaults.

A file may leave fields out: they keep DavidNet's values, or those of the kind that it names. It never imports code.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.escape import shown
from fastcifar.output import read_file, user_path
from fastcifar.recipes.declare import (
    Checked,
    Kind,
    allowed,
    field_docs,
    fits,
    is_optional,
    item_hints,
    plain,
    refuse_long,
    sections_of,
    type_hints,
)
from fastcifar.recipes.legacy import in_steps, modern_path, modernize
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.transforms import Transforms

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_LARGEST = 2**20
"""Bytes that a recipe file may have; that of a named recipe has 8,000."""
_MOST_STEPS = 10**7
"""A name of n parts, a.b.c, takes the parser n**2 steps, and as many bytes. Every dot that may be one of a name counts:
not that of a number in a list, for no name has a comma or bracket after it, nor those of a line of comment."""
_LISTED = re.compile(r"(?<=[\[,\s])[+-]?\d+\.\d+(?:[eE][+-]?\d+)?(?=[,\]])")


class Written(str):
    """A value from the command line, to be read by its field's type."""


def to_toml(recipe: Recipe) -> str:
    """Return the recipe as the text of a TOML file; `recipe_from_dict(tomllib.loads(text))` equals `recipe`."""
    lines = []
    for prefix, section in sections_of(recipe):
        docs = field_docs(type(section))
        if prefix and dataclasses.fields(section):
            lines += ["", f"[{'.'.join(map(_key, prefix[:-1].split('.')))}]"]
        for field in dataclasses.fields(section):
            if not isinstance(value := getattr(section, field.name), Checked):
                doc = shown(" ".join(docs.get(field.name, "").split()))
                lines += textwrap.wrap(doc, 100, initial_indent="# ", subsequent_indent="# ")
                lines.append(f"{_key(field.name)} = {to_text(value)}")
    return "\n".join(lines) + "\n"


def to_text(value: object) -> str:
    """Return a field's value in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)  # TOML's escapes are JSON's; those of any character are its own
        return text if text.isprintable() else "".join(map(_written, text))
    if isinstance(value, tuple):
        return "[" + ", ".join(map(to_text, value)) + "]"
    return repr(value)


def _written(character: str) -> str:
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else to_text(name)


def read_toml(path: str | Path) -> Recipe:
    """Return the recipe in a TOML file, named after the file unless it has a name: a hyphen stands for what no name
    holds, such as spaces.

    Raises UserError, with the file and the field, for a file that cannot be read or is not TOML, an unknown field, a
    wrong type and a value out of range.
    """
    path = user_path(path, "the recipe file")
    try:
        values = _parsed(read_file(path, "the recipe", _LARGEST).decode("utf-8-sig"))  # some editors write a mark
    except UserError as error:
        raise UserError(f"{error}; allowed: a TOML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a TOML file: it is not written in UTF-8; allowed: text in UTF-8") from None
    except (ValueError, RecursionError) as error:  # not TOML, or nested beyond reason
        raise UserError(f"{path} is not a TOML file: {' '.join(str(error).split())}") from None
    if in_steps(values) != values:  # which may have been written when they counted steps
        options = ", ".join(map(str, values["schedule"]["options"]))
        allowed = "lengths with a unit, as in step_size=7epochs, step_size=7steps or step_size=30%"
        raise UserError(f"{path}: schedule.options has {options}; allowed: {allowed}")
    name = re.sub(r"[^\w.+-]+", "-", path.stem).lstrip(".-").rstrip("-") or Recipe.name
    return recipe_from_dict({"name": name, **values}, str(path))


def recipe_from_dict(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return the recipe in nested dictionaries, as from a TOML or JSON file or `dataclasses.asdict`.
    Fields left out keep DavidNet's values, or those of the kind that a section names.

    Files from before sections had kinds are read too, with one warning (`RenamedWarning`).
    Raises UserError, with `where`, the place of the values, and the field, for an unknown field, a wrong type and a
    value out of range.
    """
    try:
        return _section(Recipe, modernize(values, where), prefix="")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def change(recipe: Recipe, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return `recipe` with new `values` of fields, by dotted names, checked like those of a file.

    A value may be a section, whole or in part, or for an open one its kind: `{"network": "mlp"}`. Another kind begins
    with its own defaults; the same one keeps its fields.
    Raises UserError, with `where`, the place of the values, and the field, for an unknown field, a wrong type and a
    value out of range.
    """
    fields = dataclasses.asdict(recipe)
    kind = values.get("network.kind", values.get("network", recipe.network.kind))
    parts = [(modern_path(path, where, kind).split("."), value) for path, value in values.items()]
    # A kind goes before its fields, and so does a section.
    parts.sort(key=lambda part: part[0][-1] != "kind" and len(part[0]))
    try:
        for path, value in parts:
            _put(fields, path, value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return recipe_from_dict(fields, where)


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Give each value in nested dictionaries with its dotted name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value


def read_changes(words: Iterable[str]) -> dict[str, Any]:
    """Return the fields and values in words such as `optimizer.lr=0.2` and `network.widths=[8, 16, 32, 64]`, for
    `change`. Raises UserError for any other word."""
    changes = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not (path and equals and text):
            raise UserError(f"{brief(word)} sets no field; allowed: FIELD=VALUE, as in optimizer.lr=0.2")
        changes[path.replace("-", "_")] = Written(text)
    return changes


def read_value(words: str | Sequence[str], hint: Any) -> Any:
    """Return the value of type `hint` in a word, or for a list in several. A word that is no such value is returned as
    it is, for `change` to refuse."""
    if is_optional(hint):
        hint = get_args(hint)[0]
    if not isinstance(words, str):
        if len(words) == 1:
            return read_value(words[0], hint)
        items = _item_hint(hint)
        if get_origin(items) is tuple:  # several lists, one after the other
            size = len(get_args(items))
            return [read_value(words[place : place + size], items) for place in range(0, len(words), size)]
        return [read_value(word, items) for word in words]
    if hint is str or get_origin(hint) is Literal:
        return _toml(words, str)
    if hint is float:
        return _float(_toml(words))
    if get_origin(hint) is not tuple:
        return _toml(words)
    value = _toml(words)
    if isinstance(value, list):
        return value
    if len(words.split()) > 1 and "[" not in words and _item_hint(hint) is not str:
        return read_value(words.split(), hint)
    return [read_value(words, _item_hint(hint))]


def field_hints(recipe: Recipe) -> dict[str, Any]:
    """Return the type of every field of `recipe` that can be set, with all transforms, by dotted name."""
    return {
        f"{prefix}{field.name}": type_hints(type(section))[field.name]
        for prefix, section in sections_of(with_all_transforms(recipe))
        for field in dataclasses.fields(section)
        if field.init and not isinstance(getattr(section, field.name), Checked)
    }


def with_all_transforms(recipe: Recipe) -> Recipe:
    """Return `recipe` with a section for every registered transform, on or off."""
    configs = {field.name: getattr(recipe.transforms, field.name) for field in dataclasses.fields(recipe.transforms)}
    return dataclasses.replace(recipe, transforms=Transforms.of_all_kinds()(**configs))


def _put(fields: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put `value` into nested dictionaries. A section in part keeps its other fields unless it names another kind."""
    names_kind = len(path) > 1 and path[-1] == "kind"
    *sections, name = path[:-1] if names_kind else path
    inside = fields
    for section in sections:
        if not isinstance(found := inside.get(section, {}), dict):
            raise UserError(f"{section} in {'.'.join(path)} is no section; allowed: a field such as optimizer.lr")
        inside[section] = dict(found)  # a copy: it may be the caller's
        inside = inside[section]
    before = inside.get(name)
    if names_kind or (isinstance(before, dict) and "kind" in before and isinstance(value, str)):
        value = {"kind": read_value(str(value), str) if isinstance(value, Written) else value}
    elif isinstance(value, Checked):
        value = dataclasses.asdict(value)
    if isinstance(before, dict) and isinstance(value, Mapping) and value.get("kind") in (None, before.get("kind")):
        value = {**before, **value}
    inside[name] = value


def _section(hint: Any, values: object, prefix: str, kind: str = "") -> Any:
    """Return the section of type `hint`, or for an open one of the kind that `values` name, else of `kind`, with
    `values` in its fields."""
    is_open = issubclass(hint, Kind)
    if is_open and isinstance(values, str):
        values = {"kind": values}
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix[:-1]} is {brief(values)}; allowed: a section of fields")
    if is_open:
        named = values.get("kind", kind)
        if named not in hint.kinds:
            near = did_you_mean(named, hint.kinds)
            known = ", ".join(hint.kinds)
            raise UserError(
                f"{prefix}kind is {brief(named)}{near}; allowed: {known}, or what a plug-in adds (--plugin)"
            )
        hint = hint.kinds[named]
        values = {name: value for name, value in values.items() if name != "kind"}
    elif hint is Transforms:
        hint = Transforms.of_all_kinds()
    hints = type_hints(hint)
    names = [field.name for field in dataclasses.fields(hint) if field.init]
    for name in values:
        if name not in names:
            added = ["what a plug-in adds (--plugin)"] * issubclass(hint, Transforms)
            near = did_you_mean(name, names) or "; allowed: " + ", ".join([*names, *added])
            raise UserError(f"unknown field {prefix}{name}{near}")
    defaults = {field.name: field.default for field in dataclasses.fields(hint)}
    made = hint(
        **{
            name: _section(hints[name], value, f"{prefix}{name}.", getattr(defaults[name], "kind", ""))
            if _is_section(hints[name])
            else _value(hints[name], value, f"{prefix}{name}")
            for name, value in values.items()
        }
    )
    if isinstance(made, Transforms):  # without those at their defaults
        return Transforms.of(getattr(made, name) for name in names)
    return made


def _value(hint: Any, value: object, path: str) -> Any:
    """Return `value` as the type `hint`: only integers are converted to floats, and lists to tuples."""
    value = read_value(str(value), hint) if isinstance(value, Written) else value
    refuse_long(path, value)
    value = value if isinstance(value, list) else plain(value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        items = item_hints(hint, len(value))
        if items is not None:
            return tuple(_value(item, each, path) for item, each in zip(items, value, strict=True))
    if fits(value, hint):
        return float(value) if hint is float else value  # pyright: ignore[reportArgumentType]  (a number, as it fits)
    raise UserError(f"{path} is {brief(value)}; allowed: {allowed(hint)}")


def _is_section(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Checked)


def _item_hint(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is tuple else hint


def _float(value: Any) -> Any:
    """Return the number in a word that is none to TOML, such as .5; else `value`."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _parsed(text: str) -> dict[str, Any]:
    """Return the values in a text of TOML. Raises ValueError or RecursionError for any other."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if sum(map(_steps, text.split("\n"))) > _MOST_STEPS:
        raise ValueError("a line has too many dots")
    return tomllib.loads(text)


def _steps(line: str) -> int:
    """Return the steps that the parser takes for the longest name that a line may hold."""
    if line.lstrip(" \t").startswith("#") and not re.search("\"{3}|'{3}", line):  # which end a text of several lines
        return 0
    return _LISTED.sub("", line).count(".") ** 2


def _toml(text: str, kind: type = object) -> Any:
    """Return the TOML value in `text` if it is one and of type `kind`; else `text`."""
    try:
        values = _parsed(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = values["value"] if len(values) == 1 else text  # several lines
    return value if isinstance(value, kind) else text
