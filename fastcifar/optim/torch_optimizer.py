"""Any elementwise class of torch.optim over flat buffers."""

from __future__ import annotations

import inspect

import torch

from fastcifar.optim.flat import FlatModel
from fastcifar.optim.optimizer import FlatOptimizer
from fastcifar.recipes import Recipe

_FUSED = ("Adam", "AdamW", "SGD")
"""Classes whose step is one kernel where that is asked for, on a CPU too."""


class TorchOptimizer(FlatOptimizer):
    """The class of torch.optim that `recipe.optim.name` names, in the place of `SGD`.

    It is given the master weights of each group as one flat parameter, and as gradients those of the mean loss, in the
    master dtype. Fields that the class does not take (momentum of Adam) are left out. Biases are as with `SGD`.
    """

    not_capturable = "an optimiser of torch's counts its steps on the host"

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        super().__init__(flat, recipe, total_steps)
        self.rates = self.learning_rates()
        self._grads = [torch.zeros_like(group.weights) for group in flat.groups]
        self.reset()

    def reset(self) -> None:
        """Start again at step 0 with no state; the weights are reset by `FlatModel.load`."""
        super().reset()
        self._step = 0
        self._optimizer = self._build()

    @torch.no_grad()
    def step(self) -> None:
        """One update of all groups and averages from their gradients."""
        groups = zip(self.flat.groups, self.rates, self._grads, self._optimizer.param_groups, strict=True)
        for group, rates, grad, settings in groups:
            settings["lr"] = rates[min(self._step, len(rates) - 1)] * self._factor(group.name)
            grad.copy_(group.grads).div_(self.recipe.batch_size)
            group.weights.grad = grad if group.trains else None  # None: torch's optimisers pass it over
        self._optimizer.step()
        for group in self.flat.groups:
            self.follow(group)
        self.finish_step()
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
