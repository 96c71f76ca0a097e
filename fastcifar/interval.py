"""How often something is done in a training. Standard library only: a wrong one is refused before torch is imported."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fastcifar.errors import UserError

AUTO, NEVER = "auto", "never"
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_ALLOWED = "auto, never, a number of epochs as in 2 or 0.5, or a time as in 90s, 10min or 2h"


@dataclass(frozen=True)
class Interval:
    """So many `epochs` or so many `seconds`; with neither, when it suits, or, as `never` says, not at all."""

    epochs: float | None = None
    seconds: float | None = None
    never: bool = False


def read_interval(value: object, where: str = "every") -> Interval:
    """Return the interval that a user wrote: "auto", "never", epochs ("2", 0.5) or a time ("90s", "10min", "2h").

    where: the place of the value, for the error.

    Raises UserError for anything else.
    """
    if isinstance(value, Interval):
        return value
    text = "" if isinstance(value, bool) else str(value).strip().lower()
    if text in (AUTO, NEVER):
        return Interval(never=text == NEVER)
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(s|min|h)?", text)
    number = float(found[1]) if found else 0.0
    if not found or not 0 < number < math.inf:
        raise UserError(f"{where} is {value!r}; allowed: {_ALLOWED}")
    return Interval(seconds=number * _SECONDS[found[2]]) if found[2] else Interval(epochs=number)
