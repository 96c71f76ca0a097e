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
Convolution for Deep Neural Networks", 2018): of 256 channels ‖error‖ / ‖result‖ is 9e-7, 1.5e-6, 3e-6 and 7e-6 with s
of 3 to 6, where torch's convolution in float32 has 2e-7 and in bfloat16 3e-3. Of the filters' gradient, a sum over up
to half a million pixels, it is up to 4e-5 (torch's: 2e-6). It goes by a tile's largest values: near a huge one small
ones lose their last bits, and what is infinite or not a number spoils its whole tile. The result is the same bits for
any number of threads, and an image's does not depend on those beside it.

Some tiles at a time go all the way, so that what is between stays in the cache. Taken with 16 channels or more on both
sides and `_FEWEST` pixels or more: the speeds are `python -m bench.weight_gradients --dtype float32`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.kernels.cpp import call, use_cpp

SOURCE = "winograd.cpp"
_FEWEST_CHANNELS = 16
"""A vector's lanes with AVX512."""
_FEWEST = 2048
"""Pixels of all images; with fewer the filters are most of the work. With 16 to 256 channels it is as fast as torch's
at 300 to 1,000 pixels, with 512 at 1,000 to 2,000."""
_SIDES = (3, 4, 5, 6)


def has_kernel(x: Tensor, outputs: int) -> bool:
    """Return True if there are kernels for a convolution of x, without a stride, to so many `outputs`."""
    enough = x.dim() == 4 and min(x.shape[1], outputs) >= _FEWEST_CHANNELS
    return enough and x.dtype == torch.float32 and x.numel() >= _FEWEST * x.shape[1] and use_cpp(SOURCE, x)


def tile_side(height: int, width: int) -> int:
    """Return the side of the tiles, of 3 to 6 pixels, for a result of `height` x `width`: with the fewest products."""
    return min(_SIDES, key=lambda side: -(-height // side) * -(-width // side) * (side + 2) ** 2)


def convolve(x: Tensor, filters: Tensor, padding: int) -> Tensor:
    """Return `conv2d(x, filters.permute(3, 2, 0, 1), padding=padding)`, channels-last.

    filters: `[3, 3, C, outputs]`.
    """
    images, channels, height, width = x.shape
    sides, outputs = (height - 2 + 2 * padding, width - 2 + 2 * padding), filters.shape[3]
    out = x.new_empty(images, *sides, outputs).permute(0, 3, 1, 2)
    sizes = (images, channels, outputs, height, width, padding, tile_side(*sides), torch.get_num_threads())
    call(SOURCE, "winograd_convolution", _channels_last(x), filters.contiguous(), out, *sizes)
    return out


def weight_gradient(x: Tensor, gradient: Tensor, padding: int, border: bool) -> Tensor:
    """Return `conv_weight_gradient` without a stride."""
    (images, channels, height, width), (outputs, *sides) = x.shape, gradient.shape[1:]
    out = x.new_empty(3, 3, channels, outputs)
    sizes = (images, channels, outputs, height, width, padding, border, tile_side(*sides), torch.get_num_threads())
    call(SOURCE, "winograd_weight_gradient", _channels_last(x), _channels_last(gradient), out, *sizes)
    return _channels_last(out.permute(3, 2, 0, 1))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
