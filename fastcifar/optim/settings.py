"""Checks of the settings of optimizers that are used alone; recipes check their own."""

from __future__ import annotations

from fastcifar.errors import UserError


def require_settings(optimizer: str, momentum: float, **others: float) -> None:
    """Raise UserError for a momentum of `optimizer` outside 0 to 1, or another setting below 0."""
    if not 0 <= momentum < 1:
        raise UserError(f"momentum of {optimizer} is {momentum!r}; allowed: 0 up to, not including, 1")
    for name, value in others.items():
        if not value >= 0:
            raise UserError(f"{name} of {optimizer} is {value!r}; allowed: 0 or more")
