"""SGD with Nesterov momentum, weight decay, the cast to the compute dtype and the moving average, in one pass.

Roofline. P weights, half-precision gradients and compute copy: a step reads weights 4P, gradients 2P, velocity 4P and
writes weights 4P, velocity 4P, compute 2P: 20P bytes; with the average 8P more, every `ema_every`-th step. DavidNet, P
6.57 million: 131 MB, 31 microseconds at 4.3 TB/s (184 MB and 43 with the average). SpeedrunNet, P 1.97 million: 39 MB,
9 microseconds (55 MB and 13). 10 operations a weight, 66 and 20 MFLOP: below 0.1 microseconds at 790 TFLOP/s. The bytes
bind. Buffers whose length is a multiple of 16 get 16-byte accesses; others work, more slowly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.kernels.launch import use_triton
from fastcifar.kernels.operators import operator, refuse_gradients

FORMS = ("page", "torch")

_CPU_SLICE = 1 << 17
"""Elements that a CPU updates at a time: the half megabyte of each buffer stays in the L2 cache between operations."""

# ---------------------------------------------------------------------------------------------------------- reference


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
    form: str = "page",
    grad_scale: float = 1.0,
    ema_decay: float = 0.0,
    ema_every: int = 1,
) -> None:
    """Compute `flat_sgd` in plain torch: its specification."""
    lr = rates[step.clamp(max=len(rates) - 1)] * lr_factor
    gradient = grads.to(weights.dtype).mul(grad_scale).add_(weights, alpha=weight_decay)
    if form == "page":
        change = gradient.mul_(lr)
        velocity.mul_(momentum).sub_(change)
        weights.sub_(change).add_(velocity, alpha=momentum)
    else:
        velocity.mul_(momentum).add_(gradient)
        weights.sub_(gradient.add_(velocity, alpha=momentum).mul_(lr))
    if compute is not None:
        compute.copy_(weights)
    if ema is not None:
        flat_ema_reference(weights, ema, step, ema_decay=ema_decay, ema_every=ema_every)


def flat_ema_reference(values: Tensor, ema: Tensor, step: Tensor, *, ema_decay: float, ema_every: int) -> None:
    """Compute `flat_ema` in plain torch: its specification."""
    if not step.is_cuda:
        if step.item() % ema_every == 0:
            ema.lerp_(values, 1 - ema_decay)
        return
    ema.lerp_(values, (step % ema_every == 0).to(ema.dtype) * (1 - ema_decay))  # the step is read on the device


# ----------------------------------------------------------------------------------------------------------- operator


def _flat_sgd(
    weights: Tensor,
    grads: Tensor,
    velocity: Tensor,
    compute: Tensor | None,
    ema: Tensor | None,
    rates: Tensor,
    step: Tensor,
    lr_factor: float,
    momentum: float,
    weight_decay: float,
    form: str,
    grad_scale: float,
    ema_decay: float,
    ema_every: int,
) -> None:
    if use_triton(weights):
        from fastcifar.kernels.flat_optimizer_triton import flat_sgd_triton

        flat_sgd_triton(
            *(weights, grads, velocity, compute, ema, rates, step),
            *(lr_factor, momentum, weight_decay, form, grad_scale, ema_decay, ema_every),
        )
        return
    size = len(weights) if weights.is_cuda else _CPU_SLICE
    for start in range(0, len(weights), size):
        part = slice(start, start + size)
        flat_sgd_reference(
            weights[part],
            grads[part],
            velocity[part],
            None if compute is None else compute[part],
            None if ema is None else ema[part],
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


def _flat_ema(values: Tensor, ema: Tensor, step: Tensor, ema_decay: float, ema_every: int) -> None:
    if use_triton(values):
        from fastcifar.kernels.flat_optimizer_triton import flat_ema_triton

        flat_ema_triton(values, ema, step, ema_decay, ema_every)
    else:
        flat_ema_reference(values, ema, step, ema_decay=ema_decay, ema_every=ema_every)


operator("flat_sgd", _flat_sgd, lambda *_: None, mutates=("weights", "velocity", "compute", "ema"))
operator("flat_ema", _flat_ema, lambda *_: None, mutates=("ema",))


def check_buffers(length: int, **buffers: Tensor | None) -> None:
    """Raise ValueError for a buffer that is not flat, contiguous and of this length, or that wants a gradient; None
    passes."""
    refuse_gradients(**buffers)
    for name, buffer in buffers.items():
        if buffer is not None and (buffer.shape != (length,) or not buffer.is_contiguous()):
            raise ValueError(f"{name} has shape {list(buffer.shape)}; allowed: a contiguous [{length}], as weights")


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
    form: str = "page",
    grad_scale: float = 1.0,
    ema_decay: float = 0.0,
    ema_every: int = 1,
) -> None:
    """Take one step of SGD with Nesterov momentum on flat buffers, in place and in one pass.

    With `lr = rates[step] * lr_factor` and `g = grads * grad_scale + weight_decay * weights`:
    form "page" (Page, How to train your ResNet): `v = momentum * v - lr * g`, `w = w - lr * g + momentum * v`;
    form "torch" (torch.optim.SGD, nesterov, no dampening): `v = momentum * v + g`, `w = w - lr * (g + momentum * v)`.
    Then `compute = w`, and if `step % ema_every == 0`, `ema = ema_decay * ema + (1 - ema_decay) * w`.

    weights, velocity: float32 [P].
    grads: [P] in any floating dtype.
    compute: [P], the weights in the compute dtype; None: the weights themselves are computed with.
    ema: float32 [P], or None.
    rates: float32 [S] on the device, the learning rate of every step; past the last one the last one holds.
    step: int64 [1] on the device, so that a captured graph replays with new values; not incremented here.

    Raises ValueError for buffers of other shapes or an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; allowed: {', '.join(FORMS)}")
    check_buffers(len(weights), weights=weights, grads=grads, velocity=velocity, compute=compute, ema=ema)
    torch.ops.fastcifar.flat_sgd(
        *(weights, grads, velocity, compute, ema, rates, step),
        *(lr_factor, momentum, weight_decay, form, grad_scale, ema_decay, ema_every),
    )


def flat_ema(values: Tensor, ema: Tensor, step: Tensor, *, ema_decay: float, ema_every: int) -> None:
    """Set `ema = ema_decay * ema + (1 - ema_decay) * values`, in place, if `step % ema_every == 0`.

    values, ema: float32 [P], such as running statistics; step: int64 [1] on the device, as in `flat_sgd`.
    Raises ValueError for buffers of other shapes.
    """
    check_buffers(len(values), values=values, ema=ema)
    torch.ops.fastcifar.flat_ema(values, ema, step, ema_decay, ema_every)
