"""SGD with Nesterov momentum over flat buffers, with the moving average in the same pass."""

from __future__ import annotations

import torch

from fastcifar.kernels import flat_ema, flat_sgd
from fastcifar.optim.flat import FlatModel
from fastcifar.recipes import Recipe


class SGD:
    """The source's SGD: v <- momentum * v - lr * g; w <- w - lr * g + momentum * v, with g = dloss/dw + decay * w.

    Gradients are those of the loss summed over `recipe.batch_size` images; rate and decay are written for the mean.
    Step t, from 0, uses the schedule at (t + 1) / `total_steps`. Biases train at `bias_lr_factor` times the rate, with
    decay divided by it. After every `ema.every` steps from the first, the averages move by 1 - decay ** every (they are
    those of the weights and of the running statistics). The step counter and the rates are tensors on the device, so
    that a captured step can be replayed. Without momentum it is w <- w - lr * g, plain SGD.
    """

    capturable = True

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        self.flat, self.recipe = flat, recipe
        device = flat.statistics.device
        self.rates = torch.tensor(learning_rates(recipe, total_steps), dtype=torch.float32, device=device)
        self.count = torch.zeros(1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Start again at step 0; the buffers are reset by `FlatModel.load`."""
        self.count.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """One update of all groups and averages from their gradients."""
        optim, ema = self.recipe.optim, self.recipe.ema
        average = average_settings(self.recipe)
        for group in self.flat.groups:
            factor = optim.bias_lr_factor if group.name == "biases" else 1.0
            flat_sgd(
                group.weights,
                group.grads,
                group.velocity,
                None if group.compute is group.weights else group.compute,
                group.ema if ema.decay else None,
                self.rates,
                self.count,
                lr_factor=factor,
                momentum=optim.momentum,
                weight_decay=optim.weight_decay / factor,
                form="source",
                grad_scale=1 / self.recipe.batch_size,
                **average,
            )
        if ema.decay:
            flat_ema(self.flat.statistics, self.flat.statistics_ema, self.count, **average)
        self.count.add_(1)


def learning_rates(recipe: Recipe, total_steps: int) -> list[float]:
    """The rate of every step, for the mean loss: step t, from 0, uses the schedule at (t + 1) / `total_steps`."""
    return [recipe.optim.lr * recipe.schedule((step + 1) / total_steps) for step in range(total_steps)]


def average_settings(recipe: Recipe) -> dict[str, float | int]:
    """The arguments of the kernels that move the averages, every `ema.every` steps by so many steps' decay."""
    return {"ema_decay": recipe.ema.decay**recipe.ema.every, "ema_every": recipe.ema.every}
