"""`METHODS`: the ways to go on from an earlier training's weights, from Ash and Adams 2020 on, each in a few lines.

Some change the weights that a training begins with, others the training itself. Those have a cold start of their own
beside the plain one: what helps every training is no answer to the question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.recipes import Recipe, change
from fastcifar.recipes.declare import checked, declaration, type_hints
from fastcifar.recipes.text import read_changes, read_value
from fastcifar.start import ShrinkPerturb, Start, WarmStart


@dataclass(frozen=True)
class Method:
    """A way to begin with given weights, and to train from there."""

    source: str
    """Its paper, with the year."""
    start: type[Any] = WarmStart
    """How the training begins."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The options of that."""
    changes: Mapping[str, Any] | Callable[[Recipe, int], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """What it changes in the recipe, in all rounds, by dotted name; or a function of the recipe and the steps of an
    epoch of the last round."""

    def begin(self, **options: Any) -> Callable[[Path], Start]:
        """Return the start from a file of weights, with further options."""
        return partial(self.start, **{**self.options, **options})

    def recipe(self, recipe: Recipe, steps: int) -> Recipe:
        """Return the recipe of all its rounds, whose last has epochs of so many `steps`."""
        return change(recipe, self.changes(recipe, steps) if callable(self.changes) else self.changes)


METHODS = {
    "warm": Method("Ash and Adams 2020"),
    "shrink-perturb": Method("Ash and Adams 2020", ShrinkPerturb),
    "reset-head": Method("Nikishin 2022", options={"reset_head": True}),
}
"""The methods by the names of their arms."""


def chosen(only: tuple[str, ...], settings: tuple[str, ...]) -> dict[str, Method]:
    """Return the methods in `only`, all where that is empty, in the order of `METHODS`, changed as the words of
    `settings` say: METHOD:FIELD=VALUE, a field of its start or, by dotted name, of the recipe. Raises UserError for
    unknown names and other words."""
    for name in only:
        if name not in METHODS:
            raise UserError(f"only has {brief(name)}{did_you_mean(name, METHODS)}; allowed: {', '.join(METHODS)}")
    methods = {name: method for name, method in METHODS.items() if name in (only or METHODS)}
    for word in settings:
        name, colon, text = word.partition(":")
        if not colon or name not in METHODS or "=" not in text:
            allowed = "METHOD:FIELD=VALUE, as in shrink-perturb:shrink=0.2"
            near = "" if name in METHODS else did_you_mean(name, METHODS)
            raise UserError(f"method_settings has {brief(word)}{near}; allowed: {allowed}")
        if name in methods:
            methods[name] = _changed(methods[name], text, name)
    return methods


def _changed(method: Method, text: str, name: str) -> Method:
    """Return `method` with one more field, of its start or of the recipe, as "shrink=0.2" says."""
    path, _, value = text.partition("=")
    fields = {field.name: field for field in dataclasses.fields(method.start) if field.name != "source"}
    if path in fields:
        hint = type_hints(method.start)[path]
        given = checked(f"{name}:{path}", read_value(value, hint), hint, declaration(fields[path]))
        return dataclasses.replace(method, options={**method.options, path: given})
    before, further = method.changes, read_changes([text])

    def changes(recipe: Recipe, steps: int) -> Mapping[str, Any]:
        return {**(before(recipe, steps) if callable(before) else before), **further}

    return dataclasses.replace(method, changes=changes)
