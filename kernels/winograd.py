"""3x3 convolutions of float32 images on CPUs by Winograd's minimal filtering, with a fifth to a half of the products.

Method (winograd.cpp): A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), after S.
Winograd (1980). A convolution multiplies polynomials, and a polynomial is known by its values at enough points, where a
product has the product of the values. So a tile of s x s pixels of the result, with the (s + 2) x (s + 2) pixels of x
that it is made of, is taken to values at s + 1 points and at infinity along both axes, and so are the filters. There a
tile is (s + 2)^2 numbers for each channel, and each of these is a matrix product of its own, of all tiles by channels
with channels by outputs; what comes of it is taken back. s is 3 to 6, by the image: (s + 2)^2 / s^2 products for a
pixel where a plain convolution has 9, and for those of tiles that reach beyond the image.

The gradient of x is a convolution too, with the filters turned around. That of the filters is the same, transposed:
tiles of x and of the result's gradient at the points, multiplied, added up over all tiles, and taken back.

The points are pairs of opposite fractions, which halves the work of taking there and back, and of such fractions those
with the least error (B. Barabasz and others searched likewise, "Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks", 2018): of 256 channels ‖error‖ / ‖result‖ is 9e-7, 1.5e-6, 3.3e-6 and 6e-6 with s
of 3 to 6, where a plain sum in float32 has 7e-7 and bfloat16 3e-3. Of the filters' gradient, a sum over up to half a
million pixels, it is up to 4e-5 (plain: 2e-6). The result is the same bits for any number of threads, and an image's
does not depend on those beside it. What is infinite or not a number spoils its whole tile.

Some tiles at a time go all the way, so that what is between stays in the cache. Taken with 16 channels or more on both
sides and `_FEWEST` pixels or more, where `python -m bench.weight_gradients --dtype float32` finds it no slower.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcifar.kernels.cpp import call, use_cpp
from fastcifar.kernels.operators import operator, refuse_gradients

SOURCE = "winograd.cpp"
_FEWEST_CHANNELS = 16
"""A vector's lanes with AVX512."""
_FEWEST = 2048
"""Pixels of all images; with fewer the filters are most of the work."""
_SIDES = (3, 4, 5, 6)


def winograd_convolution_reference(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The specification of `winograd_convolution`: torch's own."""
    return F.conv2d(x, weight, padding=padding)


def winograd_input_gradient_reference(gradient: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The specification of `winograd_input_gradient`: torch's own."""
    x, mask = _empty_input(gradient, weight, padding), [True, False, False]
    how = (None, [1, 1], [padding, padding], [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(gradient, x, weight, *how, mask)[0]


def has_kernel(x: Tensor, outputs: int) -> bool:
    """Return True if a convolution of x to so many `outputs`, without a stride, takes its C++ kernel."""
    enough = x.dim() == 4 and min(x.shape[1], outputs) >= _FEWEST_CHANNELS
    return enough and x.dtype == torch.float32 and x.numel() >= _FEWEST * x.shape[1] and use_cpp(SOURCE, x)


def tile_side(height: int, width: int) -> int:
    """Return the side of the tiles, of 3 to 6 pixels, for a result of `height` x `width`: with the fewest products."""
    return min(_SIDES, key=lambda side: -(-height // side) * -(-width // side) * (side + 2) ** 2)


def _sizes(x: Tensor, outputs: int, padding: int) -> tuple[int, ...]:
    return len(x), x.shape[1], outputs, *x.shape[2:], padding


def _convolve(x: Tensor, filters: Tensor, padding: int, out: Tensor) -> Tensor:
    """filters: `[3, 3, C, outputs]`."""
    x, side = x.contiguous(memory_format=torch.channels_last), tile_side(*out.shape[2:])
    sizes = (*_sizes(x, out.shape[1], padding), side, torch.get_num_threads())
    call(SOURCE, "winograd_convolution", x, filters.contiguous(), out, *sizes)
    return out


def _winograd_convolution(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    if weight.dtype != x.dtype or not has_kernel(x, len(weight)):
        return winograd_convolution_reference(x, weight, padding)
    return _convolve(x, weight.permute(2, 3, 1, 0), padding, _empty(x, weight, padding))


def _winograd_input_gradient(gradient: Tensor, weight: Tensor, padding: int) -> Tensor:
    if weight.dtype != gradient.dtype or not has_kernel(gradient, weight.shape[1]):
        return winograd_input_gradient_reference(gradient, weight, padding)
    turned = weight.flip(2, 3).permute(2, 3, 0, 1)
    return _convolve(gradient, turned, 2 - padding, _empty_input(gradient, weight, padding))


def winograd_weight_gradient(x: Tensor, gradient: Tensor, padding: int, border: bool) -> Tensor:
    """Return `conv_weight_gradient` without a stride where `has_kernel`."""
    x, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
    out = x.new_empty(3, 3, x.shape[1], gradient.shape[1])
    sizes = (*_sizes(x, gradient.shape[1], padding), border, tile_side(*gradient.shape[2:]), torch.get_num_threads())
    call(SOURCE, "winograd_weight_gradient", x, gradient, out, *sizes)
    return out.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    sides = (side + 2 * padding - 2 for side in x.shape[2:])
    return _unwritten(x, (len(x), len(weight), *sides))


def _empty_input(gradient: Tensor, weight: Tensor, padding: int) -> Tensor:
    sides = (side + 2 - 2 * padding for side in gradient.shape[2:])
    return _unwritten(gradient, (len(gradient), weight.shape[1], *sides))


def _unwritten(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _products(x: Tensor, weight: Tensor, padding: int) -> list[tuple[int, int]]:
    """Those of the convolution, whichever way it is computed."""
    out = _empty(x, weight, padding)
    values = x.numel() + weight.numel() + out.numel()
    return [(out.numel() * weight[0].numel(), values * x.element_size())]


def _input_products(gradient: Tensor, weight: Tensor, padding: int) -> list[tuple[int, int]]:
    values = gradient.numel() + weight.numel() + _empty_input(gradient, weight, padding).numel()
    return [(gradient.numel() * weight[0].numel(), values * gradient.element_size())]


operator("winograd_convolution", _winograd_convolution, _empty, products=_products)
operator("winograd_input_gradient", _winograd_input_gradient, _empty_input, products=_input_products)


def winograd_convolution(x: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """Return `conv2d(x, weight, padding=padding)`, channels-last: `[N, outputs, H - 2 + 2 * padding, ...]`.

    x: `[N, C, H, W]`, best channels-last.
    weight: `[outputs, C, 3, 3]`.
    padding: 0 or 1.

    Raises ValueError for other shapes or another padding, and for tensors that want a gradient.
    """
    refuse_gradients(x=x, weight=weight)
    if (
        padding not in (0, 1)
        or x.dim() != 4
        or weight.shape[1:] != (x.shape[1], 3, 3)
        or min(x.shape[2:]) < 3 - 2 * padding
    ):
        raise ValueError(
            f"x is {list(x.shape)}, weight {list(weight.shape)}, padding {padding}; allowed: images [N, C, H, W], "
            "filters [outputs, C, 3, 3] no larger than the padded image, padding 0 or 1"
        )
    return torch.ops.fastcifar.winograd_convolution(x, weight, padding)


def winograd_input_gradient(gradient: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """Return the gradient of x in `winograd_convolution(x, weight, padding=padding)`, channels-last: `[N, C, H, W]`.

    gradient: that of the result, `[N, outputs, H + 2 * padding - 2, W + 2 * padding - 2]`, best channels-last.

    Raises ValueError as `winograd_convolution` does.
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
    return torch.ops.fastcifar.winograd_input_gradient(gradient, weight, padding)
