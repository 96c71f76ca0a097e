"""The Triton kernels of `flat_sgd` and `flat_ema`, and their launches."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import LaunchSizes, launch


@dataclass(frozen=True)
class Sizes:
    block: int
    """Elements per program."""
    warps: int


SIZES = LaunchSizes({(8, 0): Sizes(block=1024, warps=4)}, interpreted=Sizes(block=65536, warps=1))


@triton.jit(do_not_specialize=["rates_length", "ema_every"])
def _flat_sgd_kernel(
    weights_ptr,  # float32 [length]
    grads_ptr,  # float32, float16 or bfloat16 [length]
    velocity_ptr,  # float32 [length]
    compute_ptr,  # float16 or bfloat16 [length], or None
    ema_ptr,  # float32 [length], or None
    rates_ptr,  # float32 [rates_length]
    step_ptr,  # int64 [1]
    length,
    rates_length,
    lr_factor,
    momentum,
    weight_decay,
    grad_scale,
    ema_decay,
    ema_every,
    TORCH_FORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < length
    step = tl.load(step_ptr)
    lr = tl.load(rates_ptr + tl.minimum(step, rates_length - 1)) * lr_factor
    weights = tl.load(weights_ptr + places, mask)
    velocity = tl.load(velocity_ptr + places, mask)
    gradient = tl.load(grads_ptr + places, mask).to(tl.float32) * grad_scale + weight_decay * weights
    if TORCH_FORM:
        velocity = momentum * velocity + gradient
        weights -= lr * (gradient + momentum * velocity)
    else:
        velocity = momentum * velocity - lr * gradient
        weights = weights - lr * gradient + momentum * velocity
    tl.store(velocity_ptr + places, velocity, mask)
    tl.store(weights_ptr + places, weights, mask)
    if compute_ptr is not None:
        tl.store(compute_ptr + places, weights, mask)
    if ema_ptr is not None:  # noqa: SIM102  (decided when the kernel is compiled, the other when it runs)
        if step % ema_every == 0:
            ema = tl.load(ema_ptr + places, mask)
            tl.store(ema_ptr + places, ema + (1 - ema_decay) * (weights - ema), mask)


@triton.jit(do_not_specialize=["ema_every"])
def _flat_ema_kernel(
    values_ptr,  # float32 [length]
    ema_ptr,  # float32 [length]
    step_ptr,  # int64 [1]
    length,
    ema_decay,
    ema_every,
    BLOCK: tl.constexpr,
):
    if tl.load(step_ptr) % ema_every == 0:
        places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = places < length
        ema = tl.load(ema_ptr + places, mask)
        values = tl.load(values_ptr + places, mask)
        tl.store(ema_ptr + places, ema + (1 - ema_decay) * (values - ema), mask)


def flat_sgd_triton(
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
    sizes = SIZES.of(weights)
    launch(
        _flat_sgd_kernel,
        (-(-len(weights) // sizes.block),),
        *(weights, grads, velocity, compute, ema, rates.contiguous(), step, len(weights), len(rates)),
        *(lr_factor, momentum, weight_decay, grad_scale, ema_decay, ema_every),
        TORCH_FORM=form == "torch",
        BLOCK=sizes.block,
        num_warps=sizes.warps,
    )


def flat_ema_triton(values: Tensor, ema: Tensor, step: Tensor, ema_decay: float, ema_every: int) -> None:
    sizes = SIZES.of(values)
    launch(
        _flat_ema_kernel,
        (-(-len(values) // sizes.block),),
        *(values, ema, step, len(values), ema_decay, ema_every),
        BLOCK=sizes.block,
        num_warps=sizes.warps,
    )
