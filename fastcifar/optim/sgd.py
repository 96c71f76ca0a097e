"""SGD with Nesterov momentum over flat buffers, with the moving average in the same pass."""

from __future__ import annotations

import torch

from fastcifar.optim.flat import FlatGroup
from fastcifar.optim.optimizer import GroupOptimizer


class SGD(GroupOptimizer):
    """The source's SGD: v <- momentum * v - lr * g; w <- w - lr * g + momentum * v, with g = dloss/dw + decay * w.

    Biases train at `bias_lr_factor` times the rate, with decay divided by it. Without momentum it is w <- w - lr * g,
    plain SGD.
    """

    def step_group(self, group: FlatGroup, rates: torch.Tensor) -> None:
        optim = self.recipe.optim
        factor = optim.bias_lr_factor if group.name == "biases" else 1.0
        self.sgd(
            group,
            rates,
            lr_factor=factor,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay / factor,
            form="source",
        )
