"""2x2 max-pool (optional), ghost or plain batch norm, activation and residual (optional), fused, with the gradient.

This file: the operators and the public functions. The specification is in reference.py, the path of CPUs in
norm_act_pool.cpp or, without a compiler, native.py, the Triton kernels in forward.py and backward.py.

Roofline, half precision, n elements in and m out (m = n, or n / 4 with pool). Forward, two launches: read x (2n bytes;
with pool write the pooled x and its argmax, 3m), then read 2m, write 2m, read a residual 2m. Backward, two launches:
read gradient and input (4m) twice, with pool also the argmax (m), write x's gradient (2n). Operations, counting an
exponential as four: 15 to 18 m forward, 40 m backward. A border adds its pixels to what is written of out and made of
its gradient; they are not read here.

| network, shapes | forward | backward | bytes at 4.3 TB/s | operations at 790 TFLOP/s |
| --- | --- | --- | --- | --- |
| DavidNet, batch 512, stem 64x32x32 | 201 MB | 336 MB | 47 + 78 us | 0.6 + 1.7 us |
| 128x32x32 with pool | 252 MB | 285 MB | 59 + 66 us | 0.4 + 0.8 us |
| 128x16x16, twice, one residual | 235 MB | 336 MB | 55 + 78 us | 0.6 + 1.7 us |
| 256x16x16 with pool | 126 MB | 143 MB | 29 + 33 us | 0.2 + 0.4 us |
| 512x8x8 with pool | 63 MB | 71 MB | 15 + 17 us | 0.1 + 0.2 us |
| 512x4x4, twice, one residual | 59 MB | 84 MB | 14 + 20 us | 0.2 + 0.4 us |
| a whole step | 935 MB | 1254 MB | 218 + 292 us | 2 + 5 us |
| SpeedrunNet, batch 2000, 64x30x30 with pool | 432 MB | 490 MB | 100 + 114 us | 0.7 + 1.5 us |
| 64x15x15 with border | 181 MB | 288 MB | 42 + 67 us | 0.5 + 1.5 us |
| 256x14x14 with pool | 376 MB | 427 MB | 87 + 99 us | 0.6 + 1.3 us |
| 256x7x7 with border | 166 MB | 251 MB | 39 + 58 us | 0.5 + 1.3 us |
| 256x6x6 with pool | 69 MB | 78 MB | 16 + 18 us | 0.1 + 0.2 us |
| 256x3x3 | 28 MB | 46 MB | 6 + 11 us | 0.1 + 0.2 us |
| a whole step | 1252 MB | 1580 MB | 291 + 367 us | 2 + 6 us |

The bytes bind everywhere, by two orders of magnitude against the matrix units and still by several times against the
float32 units that do this arithmetic (67 TFLOP/s); but a GPU also issues conversions, addresses and moves, and with
GELU, as compiled, about as many instructions as its bytes leave time for. What one launch leaves in the L2 cache (60 MB
on an H200) for the next comes off: the second reading of the smaller tensors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastcifar.kernels.cpp import use_cpp
from fastcifar.kernels.launch import use_triton
from fastcifar.kernels.norm_act_pool.cpp import SOURCE, cpp_backward, cpp_forward, cpp_inference
from fastcifar.kernels.norm_act_pool.native import (
    dense,
    empty_images,
    empty_out,
    empty_pooled,
    inside,
    native_backward,
    native_forward,
    native_inference,
    out_size,
)
from fastcifar.kernels.norm_act_pool.reference import norm_act_pool_inference_reference, norm_act_pool_reference
from fastcifar.kernels.operators import autograd, needs_plain_torch, operator

__all__ = ["ACTIVATIONS", "norm_act_pool", "norm_act_pool_inference", "norm_act_pool_reference"]

ACTIVATIONS = ("celu", "relu", "gelu", "silu", "none", "sum_relu")


def _forward(x, *arguments):
    if use_triton(x):
        from fastcifar.kernels.norm_act_pool.forward import triton_forward

        return triton_forward(x, *arguments)
    return cpp_forward(x, *arguments) if use_cpp(SOURCE, x) else native_forward(x, *arguments)


def _forward_fake(x, bias, scale, running_mean, running_var, momentum, groups, *rest):
    _, _, pool, _, _, border = rest
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, var = (x.new_empty((groups, x.shape[1]), dtype=wide) for _ in range(2))
    return empty_out(x, pool, border), mean, var, *empty_pooled(x, pool)


def _inference(x, *arguments):
    if use_triton(x):
        from fastcifar.kernels.norm_act_pool.forward import triton_inference

        return triton_inference(x, *arguments)
    return cpp_inference(x, *arguments) if use_cpp(SOURCE, x) else native_inference(x, *arguments)


def _inference_fake(x, mean, var, bias, scale, activation, alpha, pool, eps, residual, border):
    return empty_out(x, pool, border)


def _backward(
    gradient: Tensor,
    inputs: Tensor,
    argmax: Tensor | None,
    result: Tensor | None,
    mean: Tensor,
    var: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    activation: str,
    alpha: float,
    eps: float,
    height: int,
    width: int,
    border: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, bias and scale, and with `sum_relu` of the residual, else an empty tensor."""
    if activation == "sum_relu" and result is None:
        raise ValueError("result is None; allowed with sum_relu: what the forward pass returned")
    x_gradient = empty_images(inputs, height, width)
    masked = empty_images(inputs, inputs.shape[2], inputs.shape[3]) if activation == "sum_relu" else None
    (inputs,) = dense(inputs)
    rest = (mean, var, bias, scale, activation, alpha, eps, x_gradient, border)
    if use_triton(inputs):
        from fastcifar.kernels.norm_act_pool.backward import triton_backward

        sums = triton_backward(gradient, inputs, argmax, result, masked, *rest)
    elif use_cpp(SOURCE, inputs):
        sums = cpp_backward(gradient, inputs, argmax, result, masked, *rest)
    else:
        sums = native_backward(gradient, inputs, argmax, result, masked, *rest)
    return x_gradient, *sums, inputs.new_empty(0) if masked is None else masked


def _backward_fake(
    gradient, inputs, argmax, result, mean, var, bias, scale, activation, alpha, eps, height, width, border
):
    x_gradient = empty_images(inputs, height, width)
    masked = empty_images(inputs, inputs.shape[2], inputs.shape[3]) if activation == "sum_relu" else inputs.new_empty(0)
    return x_gradient, torch.empty_like(bias), torch.empty_like(bias), masked


operator("norm_act_pool", _forward, _forward_fake, signature=native_forward, mutates=("running_mean", "running_var"))
operator("norm_act_pool_backward", _backward, _backward_fake)
operator("norm_act_pool_inference", _inference, _inference_fake, signature=native_inference)


def _save(ctx, inputs, output) -> None:
    x, bias, scale, _, _, _, _, activation, alpha, pool, eps, residual, border = inputs
    out, mean, var, pooled, argmax = output
    # The result tells CELU's and ReLU's slope, and the next layer keeps it anyway; the other kernels do without.
    # With `sum_relu` its zeros say to all where nothing passes, in place of the residual.
    told = residual is None and activation in ("celu", "relu")
    keep_result = activation == "sum_relu" or (told and not x.is_cuda and not use_cpp(SOURCE, x))
    ctx.save_for_backward(
        pooled if pool else x, argmax if pool else None, out if keep_result else None, mean, var, bias, scale
    )
    ctx.constants = (activation, alpha, eps, *x.shape[2:], border)
    ctx.has_residual = residual is not None
    ctx.mark_non_differentiable(mean, var, pooled, argmax)
    ctx.set_materialize_grads(False)


def _gradients(ctx, gradient, *_):
    if gradient is None:
        return (None,) * 13
    saved = ctx.saved_tensors  # read once: under `torch.utils.checkpoint` a second reading fails
    x, bias, scale_gradient, masked = torch.ops.fastcifar.norm_act_pool_backward(gradient, *saved, *ctx.constants)
    scale_gradient = None if saved[-1] is None else scale_gradient
    residual = masked if ctx.constants[0] == "sum_relu" else inside(gradient, ctx.constants[-1])
    residual = residual if ctx.has_residual else None
    return x, bias, scale_gradient, *(None,) * 8, residual, None


autograd("norm_act_pool", _gradients, _save)


def _check(x: Tensor, vectors: dict, activation: str, alpha: float, pool: bool, residual: Tensor | None) -> None:
    if torch._C._get_tracing_state() is not None:  # `torch.jit.trace`: sizes are tensors
        return
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape[1:] or (pool and min(x.shape[2:]) < 2):
        least = "2 by 2" if pool else "1"
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; allowed: floating [N, C, H, W], of {least} or more pixels")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    if activation == "celu" and not alpha > 0:
        raise ValueError(f"alpha is {alpha}; allowed: above 0")
    wide = _wide(x)
    for name, vector in vectors.items():
        if vector is not None and (vector.shape != x.shape[1:2] or vector.dtype not in (wide, x.dtype)):
            raise ValueError(f"{name} is {vector.dtype} {list(vector.shape)}; allowed: {wide} [{x.shape[1]}], as x")
    shape = [*x.shape[:2], *out_size(x, pool)]
    if residual is not None and (list(residual.shape) != shape or residual.dtype != x.dtype):
        raise ValueError(f"residual is {residual.dtype} {list(residual.shape)}; allowed: {x.dtype} {shape}, as out")


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype of statistics and vectors; `torch.promote_types` would stay in an exported graph."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _widened(x: Tensor, *vectors: Tensor | None) -> list[Any]:
    wide = _wide(x)
    return [vector if vector is None or vector.dtype == wide else vector.to(wide) for vector in vectors]


def norm_act_pool(
    x: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    *,
    groups: int = 1,
    activation: str = "celu",
    alpha: float = 0.3,
    pool: bool = False,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    momentum: float = 0.1,
    border: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a 2x2 max-pool (optional), ghost batch norm and activation, and add a residual (optional). Return
    `(out, mean, var)`.

    x: [N, C, H, W], channels-last (else it is copied), float32, float16, bfloat16 or float64.
    bias, scale: [C], float32 (float64 for float64 x) or in x's dtype; scale None: 1, and no gradient.
    groups: the norm is over so many slices of N / groups consecutive images (Hoffer, Hubara and Soudry 2017; 1: plain
        batch norm), its statistics in float32 whatever x is.
    activation: celu (with `alpha`), relu, gelu (exact), silu or none; or sum_relu, the ReLU of the sum with the
        residual, as a ResNet's block ends (He 2015).
    pool: stride 2, without an odd last row or column; of equal maxima the first in row-major order gets the gradient.
    residual: like out, without a border.
    running: running mean and variance, [C] in a dtype that bias may have, moved in place by `momentum` of the way
        towards the groups' mean and mean unbiased variance, count / (count - 1) times the biased one; an empty batch
        moves neither.
    border: put a row of zeros above each image of out and a column of zeros to its left, [N, C, H' + 1, W' + 1]; the
        border's gradient is ignored. A 3x3 convolution of it without padding gives what one of out with padding 1
        gives, without the last row and column.

    out: x's dtype, channels-last. mean, var (biased): [groups, C], float32 (float64 for float64 x), without gradient.
    Gradients reach x, bias, scale and residual; a second derivative raises RuntimeError.

    Raises ValueError for shapes or dtypes that do not fit, an unknown activation, groups that do not divide N, or one
    value per channel and group.
    """
    running_mean, running_var = running or (None, None)
    vectors = {"bias": bias, "scale": scale, "the running mean": running_mean, "the running variance": running_var}
    _check(x, vectors, activation, alpha, pool, residual)
    bias, scale, *moved = _widened(x, *vectors.values())
    images, (height, width) = x.shape[0], out_size(x, pool)
    if groups < 1 or images % groups:
        raise ValueError(f"groups is {groups}; allowed: a divisor of the batch of {images} images")
    if images // groups * height * width == 1:
        where = " and group" if groups > 1 else ""
        raise ValueError(f"x is {list(x.shape)}, one value per channel{where} to normalize; allowed: 2 or more")
    if images == 0:
        unknown = torch.full_like(bias.detach(), math.nan).expand(groups, -1)
        fused = (activation, alpha, pool, eps, residual, border)
        return norm_act_pool_inference_reference(x, unknown[0], unknown[0], bias, scale, *fused), unknown, unknown
    if needs_plain_torch():
        settings = {"groups": groups, "activation": activation, "alpha": alpha, "pool": pool, "eps": eps}
        moving = None if running is None else (moved[0], moved[1])
        out, mean, var = norm_act_pool_reference(
            x, bias, scale, residual=residual, running=moving, momentum=momentum, border=border, **settings
        )
    else:
        out, mean, var, _, _ = torch.ops.fastcifar.norm_act_pool(
            x, bias, scale, *moved, momentum, groups, activation, alpha, pool, eps, residual, border
        )
    for before, after in zip(running or (), moved, strict=False):
        if before.dtype != after.dtype:
            before.copy_(after.detach())
    return out, mean, var


def norm_act_pool_inference(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    *,
    activation: str = "celu",
    alpha: float = 0.3,
    pool: bool = False,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    border: bool = False,
) -> Tensor:
    """Return `norm_act_pool`'s out for given statistics `mean` and `var` [C], such as running ones, which get no
    gradient. Where one is wanted of x, bias, scale or residual, plain torch runs in place of the fused operator, with
    gradients of any order, and out has x's memory format.

    Raises ValueError as `norm_act_pool` does.
    """
    mean, var = (statistic.detach() if statistic.requires_grad else statistic for statistic in (mean, var))
    vectors = {"mean": mean, "var": var, "bias": bias, "scale": scale}
    _check(x, vectors, activation, alpha, pool, residual)
    mean, var, bias, scale = _widened(x, *vectors.values())
    arguments = (x, mean, var, bias, scale, activation, alpha, pool, eps, residual, border)
    differentiable = any(t is not None and t.requires_grad for t in (x, bias, scale, residual))
    if needs_plain_torch() or x.shape[0] == 0 or (differentiable and torch.is_grad_enabled()):
        return norm_act_pool_inference_reference(*arguments)
    return torch.ops.fastcifar.norm_act_pool_inference(*arguments)
