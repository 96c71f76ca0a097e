"""SGD with Nesterov momentum, weight decay, cast and EMA over flat buffers, in place."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def flat_sgd_reference(
    weights: Tensor,
    grads: Tensor,
    velocity: Tensor,
    compute: Tensor | None,
    ema: Tensor | None,
    rates: Tensor,
    step: Tensor,
    *,
    lr_factor: float = 1.0,
    momentum: float,
    weight_decay: float,
    form: str = "source",
    grad_scale: float = 1.0,
    ema_decay: float = 0.0,
    ema_every: int = 1,
) -> None:
    """The specification of `flat_sgd`."""
    lr = rates[step.clamp(max=len(rates) - 1)] * lr_factor
    gradient = grads.to(weights.dtype).mul(grad_scale).add_(weights, alpha=weight_decay)
    if form == "source":
        change = gradient.mul_(lr)
        velocity.mul_(momentum).sub_(change)
        weights.sub_(change).add_(velocity, alpha=momentum)
    elif form == "torch":
        velocity.mul_(momentum).add_(gradient)
        weights.sub_(gradient.add_(velocity, alpha=momentum).mul_(lr))
    else:
        raise ValueError(f"form is {form!r}; allowed: source, torch")
    if compute is not None:
        compute.copy_(weights)
    if ema is not None:
        flat_ema_reference(weights, ema, step, ema_decay=ema_decay, ema_every=ema_every)


@torch.no_grad()
def flat_ema_reference(values: Tensor, ema: Tensor, step: Tensor, *, ema_decay: float, ema_every: int) -> None:
    """The specification of `flat_ema`."""
    if values.device.type == "cpu":
        if step.item() % ema_every == 0:
            ema.lerp_(values, 1 - ema_decay)
        return
    ema.lerp_(values, torch.where(step % ema_every == 0, 1 - ema_decay, 0.0).to(ema.dtype))


def flat_sgd(
    weights: Tensor,
    grads: Tensor,
    velocity: Tensor,
    compute: Tensor | None,
    ema: Tensor | None,
    rates: Tensor,
    step: Tensor,
    *,
    lr_factor: float = 1.0,
    momentum: float,
    weight_decay: float,
    form: str = "source",
    grad_scale: float = 1.0,
    ema_decay: float = 0.0,
    ema_every: int = 1,
) -> None:
    """One step of SGD with Nesterov momentum over flat buffers, in place."""
    flat_sgd_reference(
        weights,
        grads,
        velocity,
        compute,
        ema,
        rates,
        step,
        lr_factor=lr_factor,
        momentum=momentum,
        weight_decay=weight_decay,
        form=form,
        grad_scale=grad_scale,
        ema_decay=ema_decay,
        ema_every=ema_every,
    )


def flat_ema(values: Tensor, ema: Tensor, step: Tensor, *, ema_decay: float, ema_every: int) -> None:
    """`ema = ema_decay * ema + (1 - ema_decay) * values` every `ema_every` steps, in place."""
    flat_ema_reference(values, ema, step, ema_decay=ema_decay, ema_every=ema_every)
