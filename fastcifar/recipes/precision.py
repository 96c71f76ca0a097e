"""The section `loss_scaling` of a recipe: gradients that half precision does not round to 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import Checked, setting


@dataclass(frozen=True)
class LossScalingConfig(Checked):
    """Dynamic loss scaling (Micikevicius 2018, as torch.amp.GradScaler has it): gradients are computed at a multiple of
    their size, so that small ones are not rounded to 0, and divided by it in float32. A step whose gradients are not
    finite is left out and halves the multiple. Only read where the network computes in float16; its steps are not
    captured on a GPU, since each asks whether its gradients are finite."""

    section: ClassVar[str] = "loss_scaling"

    dynamic: bool = False
    """Scale; false: never, as the named recipes train."""
    initial: float = setting(65536.0, above=0)
    """The first multiple, of the mean loss's gradients."""
    growth_every: int = setting(2000, at_least=1, unit="steps")
    """Steps in a row with finite gradients after which the multiple is doubled."""
