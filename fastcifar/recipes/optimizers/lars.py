"""LARS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.optimizers import OptimizerConfig, optimizer


@optimizer("lars", "fastcifar.optim.lars:FlatLARS")
@dataclass(frozen=True)
class LARSConfig(OptimizerConfig):
    """Rates in proportion to the ratio of each weight's norm to its gradient's (You, Gitman and Ginsburg 2017); biases
    and scales train with SGD, without decay."""

    scale_free: ClassVar[bool | None] = True
    coupled_decay: ClassVar[bool] = True

    lr: float = setting(20.0, above=0, with_batch=True)
    """Peak learning rate, multiplied by `trust_coefficient` and the ratio of norms."""
    momentum: float = setting(0.9, at_least=0, below=1, from_one=True)
    """Momentum of matrices and filters; 0: none."""
    weight_decay: float = trick(5e-4, off=0.0, at_least=0, source="You 2017")
    """Weight decay of matrices and filters, coupled: added to the gradient as weight_decay * w."""
    bias_lr: float = setting(25.0, above=0, with_batch=True)
    """Peak rate of biases and scales, for the mean loss."""
    sgd_momentum: float = setting(0.85, at_least=0, below=1, from_one=True)
    """Nesterov momentum of biases and scales."""
    trust_coefficient: float = setting(0.001, above=0)
    """eta: the rate of each matrix or filter is the scheduled one * eta * |w| / (|g| + weight_decay * |w|)."""
    norm_smoothing: float = setting(0.0, at_least=0, below=1, from_one=True)
    """Take for |g| in that ratio its moving average over the steps so far, of which each keeps this share (Page 2018);
    0: the step's own."""
