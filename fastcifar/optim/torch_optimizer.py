"""Any elementwise class of torch.optim over flat buffers."""

from __future__ import annotations

import inspect

import torch

from fastcifar.kernels import flat_ema
from fastcifar.optim.flat import FlatModel
from fastcifar.optim.sgd import average_settings, learning_rates
from fastcifar.recipes import Recipe

_FUSED = ("Adam", "AdamW", "SGD")
"""Classes whose step is one kernel where that is asked for, on a CPU too."""


class TorchOptimizer:
    """The class of torch.optim that `recipe.optim.name` names, in the place of `SGD`.

    It is given the master weights of each group as one flat parameter, and as gradients those of the mean loss, in the
    master dtype. Fields that the class does not take (momentum of Adam) are left out. Rates, biases and averages are as
    with `SGD`: step t, from 0, uses the schedule at (t + 1) / `total_steps`, and the last rate from there on. The rates
    are the host's, so that a step cannot be captured.
    """

    capturable = False

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        self.flat, self.recipe = flat, recipe
        self.rates = learning_rates(recipe, total_steps)
        self.count = torch.zeros(1, dtype=torch.int64, device=flat.statistics.device)
        for group in flat.groups:
            group.weights.grad = torch.zeros_like(group.weights)
        self.reset()

    def reset(self) -> None:
        """Start again at step 0 with no state; the weights are reset by `FlatModel.load`."""
        self._step = 0
        self.count.zero_()
        self._optimizer = self._build()

    @torch.no_grad()
    def step(self) -> None:
        """One update of all groups and averages from their gradients."""
        rate = self.rates[min(self._step, len(self.rates) - 1)]
        for group, settings in zip(self.flat.groups, self._optimizer.param_groups, strict=True):
            settings["lr"] = rate * self._factor(group.name)
            group.weights.grad.copy_(group.grads).div_(self.recipe.batch_size)
        self._optimizer.step()
        ema = self.recipe.ema
        average = average_settings(self.recipe)
        for group in self.flat.groups:
            if group.compute is not group.weights:
                group.compute.copy_(group.weights)
            if ema.decay:
                flat_ema(group.weights, group.ema, self.count, **average)
        if ema.decay:
            flat_ema(self.flat.statistics, self.flat.statistics_ema, self.count, **average)
        self.count.add_(1)
        self._step += 1

    def _build(self) -> torch.optim.Optimizer:
        optim = self.recipe.optim
        cls = getattr(torch.optim, optim.name)
        taken = inspect.signature(cls).parameters
        settings = {"fused": True} if optim.name in _FUSED else {}
        if "momentum" in taken:
            settings["momentum"] = optim.momentum
        groups = []
        for group in self.flat.groups:
            factor = self._factor(group.name)
            groups.append({"params": [group.weights]})
            if "weight_decay" in taken:
                groups[-1]["weight_decay"] = optim.weight_decay / factor
        return cls(groups, lr=optim.lr, **settings)

    def _factor(self, group: str) -> float:
        return self.recipe.optim.bias_lr_factor if group == "biases" else 1.0
