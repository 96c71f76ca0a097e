"""The section `lookahead` of a recipe: slow weights that the fast ones return to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import Checked, setting, trick


@dataclass(frozen=True)
class LookaheadConfig(Checked):
    """Lookahead in airbench96's form: every few steps slow weights move towards the fast ones, by
    1 - decay * progress ** decay_power of the way, and the fast ones go on from there; the training ends on the slow
    ones."""

    section: ClassVar[str] = "lookahead"

    every: int = trick(0, off=0, at_least=0, unit="steps", name="lookahead", source="Zhang 2019")
    """Steps between meetings of slow and fast weights (airbench96: 5); 0: no lookahead."""
    decay: float = setting(0.95**5, at_least=0, below=1)
    """Share of the slow weights that a meeting keeps at the end of the training (Zhang: 0.5 throughout)."""
    decay_power: float = setting(3.0, at_least=0)
    """The share is decay times the progress to this power; 0: constant."""
