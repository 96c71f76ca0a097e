"""The sections `ema` and `average` of a recipe: which weights are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import Checked, setting, trick


@dataclass(frozen=True)
class EMAConfig(Checked):
    """Exponential moving average of all floating state, running statistics too; the average is what is evaluated."""

    section: ClassVar[str] = "ema"

    decay: float = trick(0.99, off=0.0, at_least=0, below=1, name="ema", source="Page 2019")
    """Decay per training step; 0: no average, the last weights are evaluated."""
    every: int = setting(5, at_least=1, unit="steps")
    """Steps between updates, the first after the first step; each update uses decay ** every."""


@dataclass(frozen=True)
class AverageConfig(Checked):
    """Uniform average of the last weights, batch norm's statistics estimated again for it (Izmailov 2018, SWA); it is
    what is evaluated. Another average than ema's: one of them at a time."""

    section: ClassVar[str] = "average"

    epochs: float = trick(0.0, off=0.0, at_least=0, unit="epochs", name="average", source="Izmailov 2018")
    """Length of the training's end, in epochs, whose weights are averaged (all of it, where it is no longer); 0: no
    average."""
    every: int = setting(5, at_least=1, unit="steps")
    """Steps between the weights that are averaged, counted back from the last step."""
    images: int = setting(5000, at_least=1, unit="images")
    """Training images, the first, unchanged and of full size, that the statistics are estimated from, in batches of
    batch_size; at least one batch, a partial last one left out."""
