"""Changes of a recipe that an experiment makes and leaves out, written as `FIELD=VALUE` and `FIELD=LOW..HIGH`, and
values of a field to try, written as `FIELD=VALUE,VALUE`."""

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
    `batch_size=1024,optimizer.lr=0.2`: commas within brackets and quotes are a value's own, and those before no name.
    Raises UserError for any other word."""
    where = f"factors {brief(word)}"
    low: dict[str, Written] = {}
    high: dict[str, Written] = {}
    for part in _changes_in(word):
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


def read_values(word: str) -> tuple[str, list[Written]]:
    """Return the field and the values in a word such as `optimizer.lr=0.1,0.2`, `network.widths=8 16,16 32` or
    `network.widths=[8, 16],[16, 32]`: commas within brackets and quotes are a value's own. Raises UserError for any
    other word."""
    where = f"vary {brief(word)}"
    name, equals, text = word.partition("=")
    values = [value.strip() for value in _parts(text)]
    if not (name and equals and all(values)):
        raise UserError(f"{where} is no field with values; allowed: FIELD=VALUE,VALUE, as in optimizer.lr=0.1,0.2")
    if name == "name":
        raise UserError(f"{where} changes no training; allowed: any other field")
    return modern_path(name.replace("-", "_"), where), list(map(Written, values))


def _changes_in(word: str) -> list[str]:
    """Split `word` at the commas that a field stands behind."""
    first, *rest = _parts(word)
    changes = [first]
    for part in rest:
        if re.match(r"[\w.-]+=", part):
            changes.append(part)
        else:
            changes[-1] += f",{part}"
    return changes


def _parts(text: str) -> list[str]:
    """Split `text` at the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "," and not depth:
            parts.append("")
            continue
        depth += (character == "[") - (character == "]") if not quote else 0
        parts[-1] += character
    return parts


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
