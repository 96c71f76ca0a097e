"""SGD with Nesterov momentum: over flat buffers, with the moving average in the same pass, and alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.optimizer import GroupOptimizer
from fastcifar.optim.standalone import StandaloneOptimizer, require_settings
from fastcifar.recipes import Recipe
from fastcifar.recipes.layers import longest, refuse_unknown
from fastcifar.recipes.optimizers.sgd import SGDConfig


class FlatSGD(GroupOptimizer[SGDConfig]):
    """SGD with the rate in the velocity (Page, How to train your ResNet, 2018): v <- momentum * v - lr * g;
    w <- w - lr * g + momentum * v, with g = dloss/dw + weight_decay * w.

    Biases train at `bias_lr_factor` times the rate, with decay divided by it. Without momentum it is plain SGD,
    w <- w - lr * g. Parameters that `layers` names have a factor of the rate and a momentum of their own; each run of
    neighbors with the same ones is updated in one pass, and without `layers` a whole group. `learning_rate` is the rate
    without these factors. Raises UserError for a name in `layers` that no trained parameter has.
    """

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        super().__init__(flat, recipe, total_steps)
        own = by_parameter(self.config, flat.model)
        self._runs = {
            group: [
                (run, *settings)
                for settings in dict.fromkeys(own[parameter] for parameter in group.parameters)
                for run in group.runs(lambda parameter, settings=settings: own[parameter] == settings)
            ]
            for group in flat.groups
        }

    def step_group(self, group: FlatGroup, rates: torch.Tensor) -> None:
        factor = self.config.bias_lr_factor if group.name == "biases" else 1.0
        decay = self.config.weight_decay / factor
        for run, own_factor, momentum in self._runs[group]:
            self.sgd(
                *(group, rates, run),
                lr_factor=factor * own_factor,
                momentum=momentum,
                weight_decay=decay,
                form="page",
            )


def by_parameter(config: SGDConfig, model: nn.Module) -> dict[nn.Parameter, tuple[float, float]]:
    """Return the factor of the rate and the momentum that `config` gives each parameter of `model` that trains.

    Raises UserError for a name in `config.layers` that none of them has, or begins with."""
    layers = config.by_layer()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    refuse_unknown(layers, list(trained), "optimizer.layers")
    own = {parameter: longest(layers, name) for name, parameter in trained.items()}
    return {parameter: (1.0, config.momentum) if name is None else layers[name] for parameter, name in own.items()}


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
