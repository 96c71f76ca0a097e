"""`Checked`: frozen values that check themselves."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_type_hints

from fastcifar.errors import UserError


@dataclass(frozen=True)
class Checked:
    """Refuses a field outside its `Literal` and offers `_require` to the checks of the subclasses."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices = get_args(hint)
            if getattr(hint, "__origin__", None) is Literal and getattr(self, name) not in choices:
                self._refuse(name, "one of " + ", ".join(map(str, choices)))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                self._refuse(field.name, "a finite number")
        self._check()

    def _check(self) -> None:
        """Checks beyond the types; subclasses call `_require`."""

    def _refuse(self, name: str, allowed: str) -> None:
        path = f"{self.section}.{name}" if self.section else name
        raise UserError(f"{path} is {getattr(self, name)!r}; allowed: {allowed}")

    def _require(self, name: str, ok: object, allowed: str) -> None:
        if not ok:
            self._refuse(name, allowed)
