"""SGD with Nesterov momentum: over flat buffers, with the moving average in the same pass, and alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fastcifar.optim.flat import FlatGroup
from fastcifar.optim.optimizer import GroupOptimizer
from fastcifar.optim.standalone import StandaloneOptimizer, require_settings
from fastcifar.recipes.optimizers.sgd import SGDConfig


class FlatSGD(GroupOptimizer[SGDConfig]):
    """SGD with the rate in the velocity (Page, How to train your ResNet, 2018): v <- momentum * v - lr * g;
    w <- w - lr * g + momentum * v, with g = dloss/dw + weight_decay * w.

    Biases train at `bias_lr_factor` times the rate, with decay divided by it. Without momentum it is plain SGD,
    w <- w - lr * g.
    """

    def step_group(self, group: FlatGroup, rates: torch.Tensor) -> None:
        factor = self.config.bias_lr_factor if group.name == "biases" else 1.0
        momentum, decay = self.config.momentum, self.config.weight_decay / factor
        self.sgd(group, rates, lr_factor=factor, momentum=momentum, weight_decay=decay, form="page")


class SGD(StandaloneOptimizer, torch.optim.SGD):
    """torch's SGD, by default with Nesterov momentum: v <- momentum * v + g; w <- w - lr * (g + momentum * v), with
    g = dloss/dw + weight_decay * w.

    lr: a number, or a tensor of one element; its default is that of torch's.
    nesterov: without it w <- w - lr * v.
    maximize: go uphill.

    The velocity holds no rate, unlike `FlatSGD`'s: the two differ where the rate changes from step to step. Raises
    UserError for a setting out of range.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        *,
        maximize: bool = False,
    ) -> None:
        require_settings("SGD", momentum, lr=lr, weight_decay=weight_decay)
        # torch refuses `nesterov` without momentum, where it makes no difference
        nesterov = nesterov and momentum > 0
        super().__init__(params, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, maximize=maximize)
