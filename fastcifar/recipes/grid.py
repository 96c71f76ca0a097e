"""The values of a recipe's numeric field that a search tries: `Grid`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.recipes.declare import declaration, sections_of
from fastcifar.recipes.recipe import Recipe
from fastcifar.recipes.text import with_all_transforms

_LONGEST = 8
"""Numbers of a list, as its values make names of files."""
_DIGITS = 12
"""Significant digits of values, so that 0.1 / 2 / 2 is written 0.025."""
_PLACES = 15
"""Decimal places of values near 1."""
_MOST = 2.0**63
"""The greatest integer, which every field refuses."""


@dataclass(frozen=True)
class Grid:
    """A field's value at the start, times whole powers of a factor; every number of a list at once.

    Integers are rounded, and stay 1 or more. Of a field that is declared `from_one`, a momentum, its distance from 1 is
    divided in place of the value being multiplied: up is closer to 1. Bounds are the recipe's affair.
    """

    field: str
    """By its dotted name."""
    start: Any
    """An int, a float, or a tuple of these."""
    factor: float
    from_one: bool = False

    def value(self, power: int) -> Any:
        """Return the value at a whole power of the factor; at 0 the start, to the last bit."""
        if power == 0:
            return self.start
        if isinstance(self.start, tuple):
            return tuple(self._scaled(each, power) for each in self.start)
        return self._scaled(self.start, power)

    def _scaled(self, number: Any, power: int) -> Any:
        if self.from_one:
            return round(1 - _rounded((1 - number) * self._ratio(-power)), _PLACES)
        if number == 0:
            return number
        if type(number) is float:
            return _rounded(number * self._ratio(power))
        size = max(1, math.floor(min(abs(number) * self._ratio(power), _MOST) + 0.5))
        return int(math.copysign(size, number))

    def _ratio(self, power: int) -> float:
        try:
            return float(self.factor) ** power
        except OverflowError:
            return math.inf

    def step(self, power: int, direction: int) -> int | None:
        """Return the next power up (1) or down (-1); None where the value stays the same, as 1 does when halved."""
        return None if self.value(power + direction) == self.value(power) else power + direction


def grid_of(recipe: Recipe, field: str, factor: float) -> Grid:
    """Return the grid of a field of `recipe`, by its dotted name. Raises UserError for one that it has not, that is no
    number or numbers, or that is 0, which multiplied stays 0."""
    found = {
        f"{prefix}{each.name}": (getattr(section, each.name), declaration(each).from_one)
        for prefix, section in sections_of(with_all_transforms(recipe))
        for each in dataclasses.fields(section)
    }
    numeric = [name for name, (value, _) in found.items() if _numbers(value)]
    if field not in numeric:
        near = did_you_mean(field, numeric) or "; allowed: fields of the recipe with numbers, such as optimizer.lr"
        raise UserError(f"fields has {brief(field)}{near}")
    value, from_one = found[field]
    if len(_numbers(value)) > _LONGEST:
        raise UserError(f"fields has {field}, a list of {len(value)} numbers; allowed: up to {_LONGEST}")
    if not from_one and not any(_numbers(value)):
        allowed = f"a start that is not 0, as with --{field.replace('_', '-')} X"
        raise UserError(f"fields has {field}, which is 0 and multiplied stays 0; allowed: {allowed}")
    grid = Grid(field, value, factor, from_one)
    if grid.step(0, 1) is grid.step(0, -1) is None:
        said = f"fields has {field}, which is {brief(value)} and stays so by a factor of {factor:g}"
        raise UserError(f"{said}; allowed: a larger factor, or another field")
    return grid


def _numbers(value: Any) -> list[float]:
    """Return the numbers that a field's value is or has; none where it is or has anything else."""
    numbers = list(value) if isinstance(value, tuple) else [value]
    return numbers if all(type(each) in (int, float) for each in numbers) else []


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")
