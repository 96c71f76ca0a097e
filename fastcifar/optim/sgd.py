"""SGD with Nesterov momentum: over flat buffers, with the moving average in the same pass, and alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.optimizer import GroupOptimizer
from fastcifar.optim.standalone import StandaloneOptimizer, require_settings
from fastcifar.recipes import Recipe
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
    layers, found, met = config.by_layer(), {}, set()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in trained.items():
        own = [layer for layer in layers if f"{name}.".startswith(f"{layer}.")]
        found[parameter] = layers[max(own, key=len)] if own else (1.0, config.momentum)
        met.update(own)
    for layer in layers:
        if layer not in met:
            parts = [name.split(".") for name in trained]
            near = did_you_mean(layer, (".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)))
            allowed = ", ".join(dict.fromkeys(part[0] for part in parts))
            said = f"optimizer.layers has {brief(layer)}, and no trained parameter of the network is named so"
            raise UserError(f"{said}{near}; allowed: {allowed}, and names below these")
    return found


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
