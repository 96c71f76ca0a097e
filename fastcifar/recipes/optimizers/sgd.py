"""SGD with Nesterov momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.optimizers import OptimizerConfig, optimizer


@optimizer("sgd", "fastcifar.optim.sgd:FlatSGD")
@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """SGD with Nesterov momentum, the rate inside the velocity (Page's form), in one pass over all weights."""

    scale_free: ClassVar[bool | None] = False
    coupled_decay: ClassVar[bool] = True

    lr: float = setting(1.0, above=0, with_batch=True)
    momentum: float = setting(0.9, at_least=0, below=1, from_one=True)
    """Nesterov momentum; 0: none."""
    weight_decay: float = trick(5e-4, off=0.0, at_least=0, source="Krogh and Hertz 1992")
    """Weight decay, coupled: added to the gradient as weight_decay * w."""
    bias_lr_factor: float = trick(64.0, off=1.0, at_least=1e-4, at_most=1e4, name="bias-rate", source="Page 2019")
    """Multiply the rate of biases by this, and divide their weight decay by it; 1: train them like the weights."""
