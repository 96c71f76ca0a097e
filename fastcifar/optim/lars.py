"""LARS: each weight's rate is in proportion to its norm over its gradient's (You, Gitman and Ginsburg 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch

from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.optimizer import GroupOptimizer
from fastcifar.optim.standalone import StandaloneOptimizer, require_settings, scalar
from fastcifar.recipes import Recipe
from fastcifar.recipes.optimizers.lars import LARSConfig


class FlatLARS(GroupOptimizer[LARSConfig]):
    """LARS for matrices and filters over flat buffers, SGD with Nesterov momentum for biases and scales.

    Each matrix or filter: v <- momentum * v + lr * trust * (g + decay * w); w <- w - v, with `trust_ratio` as trust and
    lr = s * `optimizer.lr`, s being the schedule. Biases and scales have no trust ratio and no decay:
    v <- `sgd_momentum` * v + g; w <- w - s * `bias_lr` * (g + `sgd_momentum` * v). Gradients g are of the mean loss.

    With a = `norm_smoothing` above 0 the ratio has in place of |g| its moving average n <- a * n + (1 - a) * |g|, which
    begins as the first |g| that is not 0 (Page, How to train your ResNet 6: Weight decay, 2018).
    """

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        super().__init__(flat, recipe, total_steps)
        smoothed = [group for group in flat.groups if group.name == "weights" and self.config.norm_smoothing]
        self._norms = {group: flat.statistics.new_zeros(len(group.parameters)) for group in smoothed}
        """The averages n by parameter; 0: none yet. On the device, where a replayed step updates them."""

    def reset(self) -> None:
        super().reset()
        for norms in self._norms.values():
            norms.zero_()

    def _further_state(self) -> dict[str, torch.Tensor]:
        return {f"gradient_norms.{number}": norms for number, norms in enumerate(self._norms.values())}

    def step_group(self, group: FlatGroup, rates: torch.Tensor) -> None:
        config = self.config
        if group.name != "weights":
            factor, momentum = config.bias_lr / config.lr, config.sgd_momentum
            self.sgd(group, rates, lr_factor=factor, momentum=momentum, weight_decay=0.0, form="torch")
            return
        rate_now = rates[self.count.clamp(max=len(rates) - 1)]
        for place, span in enumerate(group.spans):
            weight = group.weights[span]
            gradient = group.grads[span].to(weight.dtype) / self.recipe.batch_size
            slope = _norm(gradient)
            if group in self._norms:
                average = self._norms[group][place]
                slope = average.copy_(torch.where(average > 0, average.lerp(slope, 1 - config.norm_smoothing), slope))
            trust = trust_ratio(weight, slope, config.trust_coefficient, config.weight_decay)
            _update(weight, gradient, group.velocity[span], rate_now * trust, config.momentum, config.weight_decay)
        self.follow(group)


class LARS(StandaloneOptimizer):
    """LARS for any parameters: v <- momentum * v + lr * trust * (g + weight_decay * w); w <- w - v.

    trust_coefficient: scales the `trust_ratio`. Parameters of fewer than two dimensions (biases, scales) have trust 1
        and no decay.

    The other arguments are those of torch.optim.SGD. There is no other form of a step: no `foreach`, `fused` or
    `differentiable`. Raises UserError for a setting out of range.
    """

    added: ClassVar = {"maximize": False}

    def __init__(
        self,
        params: Iterable,
        lr: float | torch.Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        *,
        maximize: bool = False,
    ) -> None:
        settings = {"lr": lr, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        require_settings("LARS", momentum, **settings)
        super().__init__(params, {**settings, "momentum": momentum, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Update every parameter that has a gradient; return the loss of `closure` if one is given. Raises RuntimeError
        for a sparse gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group, pairs in self.trained():
            for parameter, gradient in pairs:
                state, wide = self.state[parameter], parameter.dim() > 1
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                rate, decay = scalar(group["lr"]), group["weight_decay"] if wide else 0.0
                if wide:
                    rate = rate * trust_ratio(parameter, _norm(gradient), group["trust_coefficient"], decay)
                _update(parameter, gradient, state["momentum_buffer"], rate, group["momentum"], decay)
        return loss


def trust_ratio(weight: torch.Tensor, slope: torch.Tensor, coefficient: float, decay: float) -> torch.Tensor:
    """Return coefficient * |w| / (|g| + decay * |w|), with |g| = `slope`, a tensor without dimensions, in float32 or
    wider; 1 where |w| or |g| is 0."""
    size = _norm(weight)
    ratio = coefficient * size / (slope + decay * size)
    return torch.where((size > 0) & (slope > 0), ratio, torch.ones_like(ratio))


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(tensor.dtype, torch.float32)  # it may be beyond float16, or times a coefficient below
    return torch.linalg.vector_norm(tensor, dtype=wide)


def _update(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    velocity: torch.Tensor,
    rate: float | torch.Tensor,
    momentum: float,
    decay: float,
) -> None:
    """Update one tensor in place; `rate` includes the trust ratio."""
    velocity.mul_(momentum).add_((gradient + decay * weight) * rate)
    weight.sub_(velocity)
