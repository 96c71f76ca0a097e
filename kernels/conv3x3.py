"""A 3x3 convolution and its gradients, each by the fastest kernel that there is for it on a CPU: in float32 without a
stride winograd.py's, in bfloat16 that of `conv_weight_gradient` for the filters; all others by torch's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcifar.kernels import winograd
from fastcifar.kernels.conv_weight_gradient import conv_weight_gradient
from fastcifar.kernels.conv_weight_gradient import has_kernel as has_weight_kernel
from fastcifar.kernels.operators import (
    autocast_dtype,
    autograd,
    needs_plain_torch,
    operator,
    refuse_gradients,
    wants_gradient,
)


def conv3x3_reference(x: Tensor, weight: Tensor, padding: int, stride: int = 1) -> Tensor:
    """The specification of `conv3x3`: torch's own."""
    return F.conv2d(x, weight, stride=stride, padding=padding)


def conv_input_gradient_reference(gradient: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The specification of `conv_input_gradient`: torch's own."""
    return _torchs(gradient, _empty_input(gradient, weight, padding), weight, padding, 1, [True, False])[0]


def has_kernel(x: Tensor, weight: Tensor, stride: int = 1) -> bool:
    """Return True if a kernel computes the convolution of x, or the gradient of its filters if that is wanted."""
    if x.dtype != weight.dtype or x.dim() != 4 or x.shape[1] != weight.shape[1]:
        return False
    return _is_winograd(x, len(weight), stride) or (
        wants_gradient(weight) and has_weight_kernel(x, len(weight), stride)
    )


def _is_winograd(x: Tensor, outputs: int, stride: int) -> bool:
    return stride == 1 and winograd.has_kernel(x, outputs)


def _conv3x3(x: Tensor, weight: Tensor, padding: int, border: bool, stride: int) -> Tensor:
    if x.dtype == weight.dtype and _is_winograd(x, len(weight), stride):
        return winograd.convolve(x, weight.permute(2, 3, 1, 0), padding)
    return conv3x3_reference(x, weight, padding, stride).contiguous(memory_format=torch.channels_last)


def _conv_input_gradient(gradient: Tensor, weight: Tensor, padding: int) -> Tensor:
    if gradient.dtype == weight.dtype and winograd.has_kernel(gradient, weight.shape[1]):
        turned = weight.flip(2, 3).permute(2, 3, 0, 1)
        return winograd.convolve(gradient, turned, 2 - padding)
    return conv_input_gradient_reference(gradient, weight, padding).contiguous(memory_format=torch.channels_last)


def _save(ctx: Any, arguments: tuple[Any, ...], _: Tensor) -> None:
    x, weight, *ctx.how = arguments
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    if needs_plain_torch():
        return _plain_gradients(ctx, gradient)
    (x, weight), (padding, border, stride) = ctx.saved_tensors, ctx.how
    _, wants_x, wants_weight, *_ = ctx.needs_input_grad
    x_by_kernel = wants_x and _is_winograd(gradient, x.shape[1], stride)
    weight_by_kernel = wants_weight and has_weight_kernel(x, len(weight), stride)
    torchs = [wants_x and not x_by_kernel, wants_weight and not weight_by_kernel]
    of_x, of_weight = _torchs(gradient, x, weight, padding, stride, torchs)
    if x_by_kernel:
        of_x = conv_input_gradient(gradient, weight, padding=padding)
    if weight_by_kernel:
        of_weight = conv_weight_gradient(x, gradient, padding=padding, border=border, stride=stride)
    return of_x, of_weight, None, None, None


def _plain_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight), (padding, _, stride) = ctx.saved_tensors, ctx.how
    return *_torchs(gradient, x, weight, padding, stride, ctx.needs_input_grad[1:3]), None, None, None


def _torchs(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: int, stride: int, wanted: Sequence[bool]
) -> tuple[Any, Any]:
    """Return torch's gradients of x and of the filters, None for one that is not `wanted`."""
    how = (None, [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1, [*wanted, False])
    return torch.ops.aten.convolution_backward(gradient, x, weight, *how)[:2]


def _empty(x: Tensor, weight: Tensor, padding: int, border: bool, stride: int) -> Tensor:
    sides = ((side - 3 + 2 * padding) // stride + 1 for side in x.shape[2:])
    return _unwritten(x, (len(x), len(weight), *sides))


def _empty_input(gradient: Tensor, weight: Tensor, padding: int) -> Tensor:
    sides = (side + 2 - 2 * padding for side in gradient.shape[2:])
    return _unwritten(gradient, (len(gradient), weight.shape[1], *sides))


def _unwritten(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _products(x: Tensor, weight: Tensor, *how: Any) -> list[tuple[int, int]]:
    """Those of a plain convolution, whichever way it is computed."""
    return _of(_empty(x, weight, *how), x, weight)


def _input_products(gradient: Tensor, weight: Tensor, padding: int) -> list[tuple[int, int]]:
    return _of(gradient, _empty_input(gradient, weight, padding), weight)


def _of(out: Tensor, x: Tensor, weight: Tensor) -> list[tuple[int, int]]:
    values = sum(math.prod(each.shape) for each in (out, x, weight))
    return [(out.numel() * math.prod(weight.shape[1:]), values * x.element_size())]


operator("conv3x3", _conv3x3, _empty, products=_products)
operator("conv_input_gradient", _conv_input_gradient, _empty_input, products=_input_products)
autograd("conv3x3", _gradients, _save, _plain_gradients)


def conv3x3(x: Tensor, weight: Tensor, *, padding: int, border: bool = False, stride: int = 1) -> Tensor:
    """Return `conv2d(x, weight, stride=stride, padding=padding)`, channels-last, with derivatives of any order: `[N,
    outputs, (H - 3 + 2 * padding) // stride + 1, (W - 3 + 2 * padding) // stride + 1]`.

    x: `[N, C, H, W]`, best channels-last.
    weight: `[outputs, C, 3, 3]`.
    padding: 0 or 1.
    border: the first row and column of every image of x are zeros; their products are spared in the filters' gradient.
    stride: 1 or more.

    Raises ValueError for other shapes or another padding or stride.
    """
    if (
        padding not in (0, 1)
        or stride < 1
        or x.dim() != 4
        or weight.shape[1:] != (x.shape[1], 3, 3)
        or min(x.shape[2:]) < 3 - 2 * padding
    ):
        raise ValueError(
            f"x is {list(x.shape)}, weight {list(weight.shape)}, padding {padding}, stride {stride}; allowed: images "
            "[N, C, H, W], filters [outputs, C, 3, 3] no larger than the padded image, padding 0 or 1, stride 1 or more"
        )
    if needs_plain_torch() or autocast_dtype(x.device.type) not in (None, x.dtype):
        return conv3x3_reference(x, weight, padding, stride)
    return torch.ops.fastcifar.conv3x3(x, weight, padding, border, stride)


def conv_input_gradient(gradient: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """Return the gradient of x in `conv3x3(x, weight, padding=padding)`: `[N, C, H, W]`, channels-last.

    gradient: that of the result, `[N, outputs, H - 2 + 2 * padding, W - 2 + 2 * padding]`, best channels-last.

    Raises ValueError for other shapes or another padding, and for tensors that want a gradient.
    """
    refuse_gradients(gradient=gradient, weight=weight)
    if (
        padding not in (0, 1)
        or gradient.dim() != 4
        or weight.dim() != 4
        or weight.shape[:1] + weight.shape[2:] != (gradient.shape[1], 3, 3)
    ):
        raise ValueError(
            f"gradient is {list(gradient.shape)}, weight {list(weight.shape)}, padding {padding}; allowed: images "
            "[N, outputs, H, W], filters [outputs, C, 3, 3], padding 0 or 1"
        )
    return torch.ops.fastcifar.conv_input_gradient(gradient, weight, padding)
