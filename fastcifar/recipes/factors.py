"""Changes of a recipe that an experiment makes and leaves out, written as `FIELD=VALUE` and `FIELD=LOW..HIGH`."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastcifar.errors import UserError, brief
from fastcifar.recipes.legacy import modern_path
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.text import Written, change, leaves, read_changes


@dataclass(frozen=True)
class Factor:
    """One change of a recipe: values of fields, by dotted name, without it and with it."""

    word: str
    """How it is written."""
    low: dict[str, Written]
    """Empty: as the recipe is."""
    high: dict[str, Written]

    def levels(self, sign: int) -> dict[str, Written]:
        """Return the values without it, for -1, or with it, for 1."""
        return self.high if sign > 0 else self.low


def read_factor(word: str) -> Factor:
    """Return the change in a word such as `optimizer.lr=0.2`, `optimizer.lr=0.1..0.2` or
    `batch_size=1024,optimizer.lr=0.2`. Raises UserError for any other word."""
    where = f"factors {brief(word)}"
    low: dict[str, Written] = {}
    high: dict[str, Written] = {}
    for part in re.split(r",(?=[\w.-]+=)", word):
        try:
            ((name, text),) = read_changes([part]).items()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        name = modern_path(name, where)
        if name == "name":
            raise UserError(f"{where} changes no training; allowed: any other field")
        before, dots, after = (part.strip() for part in text.partition(".."))
        if name in high or (dots and not (before and after)):
            allowed = "FIELD=VALUE, FIELD=LOW..HIGH, several fields with commas between them"
            raise UserError(f"{where} is no change; allowed: {allowed}")
        high[name] = Written(after or before)
        if dots:
            low[name] = Written(before)
    return Factor(word, low, high)


def check_factors(recipe: Recipe, factors: Sequence[Factor]) -> None:
    """Raise UserError unless each of `factors` changes `recipe`, and no two the same field."""
    changed = [_fields(recipe, factor) for factor in factors]
    for (one, fields), (other, others) in itertools.combinations(zip(factors, changed, strict=True), 2):
        if both := sorted(fields & others):
            allowed = "one change of a field, or FIELD=LOW..HIGH"
            words = f"{brief(one.word)} and {brief(other.word)}"
            raise UserError(f"factors {words} both change {both[0]}; allowed: {allowed}")


def _fields(recipe: Recipe, factor: Factor) -> set[str]:
    """Return the fields whose values are others than the recipe's with or without `factor`. Raises UserError where it
    changes nothing."""
    now = dict(leaves(dataclasses.asdict(recipe)))
    where = f"factors {brief(factor.word)}"
    low, high = (dict(leaves(dataclasses.asdict(change(recipe, factor.levels(sign), where)))) for sign in (-1, 1))
    if low == high:
        said = "has one value twice" if factor.low else "leaves the recipe as it is"
        raise UserError(f"{where} {said}; allowed: another value")
    return {name for each in (low, high) for name in now | each if now.get(name) != each.get(name)}
