"""Words that give layers numbers of their own, NAME:KEY=NUMBER,KEY=NUMBER, and which of them counts for a parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.recipes.declare import Declaration, checked


def read_layers(
    path: str, words: Sequence[str], own: Mapping[str, Declaration], forms: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the numbers that `words` give each name, by key.

    path: of the field that holds the words, for errors.
    own: the keys that a layer may have numbers of, and their bounds.
    forms: how errors call each number.

    Raises UserError for a word of another form, a number out of bounds, and a name that stands there twice.
    """
    found = dict[str, dict[str, float]]()
    for word in words:
        name, _, text = word.rpartition(":")
        given = read_pairs(text)
        if not name or given is None or not given.keys() <= own.keys():
            pairs = [f"{key}={form}" for key, form in zip(own, forms, strict=True)]
            each = ", ".join(f"NAME:{pair}" for pair in pairs)
            raise UserError(f"{path} has {brief(word)}; allowed: words {each} or NAME:{','.join(pairs)}")
        if name in found:
            raise UserError(f"{path} has {brief(name)} twice; allowed: one word for a name")
        found[name] = {
            key: checked(f"{key} in {brief(word)} of {path}", _number(value), float, own[key])
            for key, value in given.items()
        }
    return found


def read_pairs(text: str) -> dict[str, str] | None:
    """Return the values in a text such as lr=0.5,momentum=0.9 by their keys; None where a key stands there twice."""
    pairs = [each.partition("=") for each in text.split(",")]
    given = {key: value for key, _, value in pairs}
    return given if len(given) == len(pairs) else None


def longest(layers: Iterable[str], name: str) -> str | None:
    """Return the longest of the names `layers` that is `name` or that it begins with, up to a dot; None: no one."""
    return max((layer for layer in layers if f"{name}.".startswith(f"{layer}.")), key=len, default=None)


def refuse_unknown(layers: Iterable[str], trained: Sequence[str], path: str) -> None:
    """Raise UserError for one of the names `layers`, of the field `path`, that no parameter in `trained` has or begins
    with."""
    for layer in layers:
        if not any(f"{name}.".startswith(f"{layer}.") for name in trained):
            parts = [name.split(".") for name in trained]
            near = did_you_mean(layer, (".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)))
            allowed = ", ".join(dict.fromkeys(part[0] for part in parts))
            said = f"{path} has {brief(layer)}, and no trained parameter of the network is named so"
            raise UserError(f"{said}{near}; allowed: {allowed}, and names below these")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
