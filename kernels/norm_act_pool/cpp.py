"""The calls of norm_act_pool.cpp: `norm_act_pool` and its gradient on a CPU with a C++ compiler.

Statistics and all arithmetic are in float32; results are rounded once. Images are read and written where they lie, with
whatever distances between rows and pixels: no copy is made but of images whose channels do not follow one another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.kernels import cpp
from fastcifar.kernels.norm_act_pool.native import (
    dense,
    empty_out,
    empty_pooled,
    inside,
    move_running,
    out_size,
)

SOURCE = "norm_act_pool/norm_act_pool.cpp"
_NUMBERS = {"celu": 0, "relu": 1, "gelu": 2, "silu": 3, "none": 4, "sum_relu": 5}  # as in activation.h


def _call(function: str, x: Tensor, *arguments) -> None:
    cpp.call(SOURCE, f"{function}_{cpp.DTYPES[x.dtype]}", *arguments, torch.get_num_threads())


def cpp_forward(
    x: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    groups: int,
    activation: str,
    alpha: float,
    pool: bool,
    eps: float,
    residual: Tensor | None,
    border: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    images, channels = x.shape[:2]
    bias, scale = dense(bias, scale)
    pooled, argmax = empty_pooled(x, pool)
    out = empty_out(x, pool, border)
    mean, var = (x.new_empty((groups, channels), dtype=torch.float32) for _ in range(2))
    _call(
        *("forward", x, images, channels, *out_size(x, pool), groups),
        *(cpp.view(t) for t in (x, pooled if pool else None, argmax if pool else None, residual, out)),
        *(bias, scale, mean, var, _NUMBERS[activation], alpha, eps, border),
    )
    move_running(running_mean, running_var, mean, var, (pooled if pool else x).numel(), momentum)
    return out, mean, var, pooled, argmax


def cpp_inference(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    activation: str,
    alpha: float,
    pool: bool,
    eps: float,
    residual: Tensor | None,
    border: bool,
) -> Tensor:
    mean, var, bias, scale = dense(mean, var, bias, scale)
    out = empty_out(x, pool, border)
    _call(
        *("inference", x, *x.shape[:2], *out_size(x, pool)),
        *(cpp.view(t) for t in (x, residual, out)),
        *(mean, var, bias, scale, _NUMBERS[activation], alpha, pool, eps, border),
    )
    return out


def cpp_backward(
    gradient: Tensor,
    inputs: Tensor,
    argmax: Tensor | None,
    result: Tensor | None,
    masked: Tensor | None,
    mean: Tensor,
    var: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    activation: str,
    alpha: float,
    eps: float,
    x_gradient: Tensor,
    border: bool,
) -> tuple[Tensor, Tensor]:
    mean, var, bias, scale = dense(mean, var, bias, scale)
    sums = torch.zeros_like(bias), torch.zeros_like(bias)
    if masked is not None and result is not None:
        activation, result = "none", inside(result, border)
    _call(
        *("backward", inputs, *inputs.shape, len(mean)),
        *(cpp.view(t) for t in (inside(gradient, border), inputs, argmax, result, masked, x_gradient)),
        *(*x_gradient.shape[2:], mean, var, bias, scale, *sums, _NUMBERS[activation], alpha, eps),
    )
    return sums
