"""The section `loss_scaling` of a recipe: keep half precision from rounding gradients to 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import Checked, setting


@dataclass(frozen=True)
class LossScalingConfig(Checked):
    """Dynamic loss scaling (Micikevicius 2018, as in torch.amp.GradScaler): gradients are computed at a multiple of
    their size, so that small ones are not rounded to 0, and divided by it in float32. A step whose gradients are not
    finite is skipped and halves the multiple. Only read where the network computes in float16. Such steps are not
    captured on a GPU, since each reads whether its gradients are finite."""

    section: ClassVar[str] = "loss_scaling"

    dynamic: bool = False
    """Scale the loss; false: never, as in the named recipes."""
    initial: float = setting(65536.0, above=0)
    """The first multiple, of the mean loss's gradients."""
    growth_every: int = setting(2000, at_least=1, unit="steps")
    """Double the multiple after so many steps in a row with finite gradients."""
