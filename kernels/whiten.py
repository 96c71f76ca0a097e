"""A whitened image's activations: a convolution of few channels without padding, bias (optional) and activation, fused.

Roofline. n pixels out of O outputs each, from images of C channels by k x k filters: reads the images once (their
pixels again from the caches), writes O n values. Speedrun, batch 512, half precision: [512, 3, 32, 32] to [512, 24, 31,
31], 3 MB and 23.6 MB: 6 microseconds at 4.3 TB/s. The convolution is 142 million multiply-adds, 0.4 microseconds at 790
TFLOP/s. But GELU is 15 instructions a value, as compiled, 5.5 million of a warp, and all else 3.4 million, most of it
to gather the patches and to lay out the result: 132 multiprocessors issue them in 10 microseconds at 1.75 GHz. They
bind, the bytes nearly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from fastcifar.kernels.launch import kernel, launch, use_triton
from fastcifar.kernels.launch_sizes import launch_sizes
from fastcifar.kernels.norm_act_pool_native import dense
from fastcifar.kernels.norm_act_pool_triton import _activated
from fastcifar.kernels.operators import operator

if TYPE_CHECKING:
    import triton.language as tl  # given to this module when Triton is loaded

ACTIVATIONS = ("gelu", "silu", "relu")
_MOST_TAPS, _MOST_OUTPUTS = 32, 64
"""Of a filter, and filters, that the kernel takes: 3x3 pixels of 3 channels, and twice as many filters. More would not
fit into registers, and torch's convolutions are not slow there."""

# ---------------------------------------------------------------------------------------------------------- reference


def whiten_reference(images: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "gelu") -> Tensor:
    """The specification of `whiten`, in plain torch; the CPU's path."""
    bias = None if bias is None else bias.to(images.dtype)
    return getattr(functional, activation)(functional.conv2d(images, weight, bias))


# ------------------------------------------------------------------------------------------------------------- Triton
# Triton annotates its ranges as no iterators:
# pyright: reportGeneralTypeIssues=false


@kernel(do_not_specialize=["pixels"])
def _whiten_kernel(
    images_ptr,  # [N, HEIGHT, WIDTH, CHANNELS]
    weight_ptr,  # [OUTPUTS, SIDE, SIDE, CHANNELS]
    bias_ptr,  # float32 [OUTPUTS], or None
    out_ptr,  # [pixels, OUTPUTS], the pixels being N * (HEIGHT - SIDE + 1) * (WIDTH - SIDE + 1)
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PIXELS: tl.constexpr,
    TAPS: tl.constexpr,  # SIDE * SIDE * CHANNELS or more, a power of two of 16 or more
    COLUMNS: tl.constexpr,  # OUTPUTS or more, a power of two
):
    dtype = images_ptr.dtype.element_ty
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    real = pixel < pixels
    row = pixel // (WIDTH - SIDE + 1)  # of all images
    image = row // (HEIGHT - SIDE + 1)
    corner_row = image.to(tl.int64) * HEIGHT + row % (HEIGHT - SIDE + 1)
    corner = images_ptr + (corner_row * WIDTH + pixel % (WIDTH - SIDE + 1)) * CHANNELS
    # A load for each tap and not one of the whole tile: so a thread has all taps of a pixel, whose address it computes
    # once, and the conditions below are known when this is compiled.
    tap = tl.arange(0, TAPS)
    patches = tl.zeros([TAPS, PIXELS], dtype)
    for number in tl.static_range(SIDE * SIDE * CHANNELS):
        place = number // (SIDE * CHANNELS) * WIDTH * CHANNELS + number % (SIDE * CHANNELS)
        value = tl.load(corner + place, real, other=0.0)
        patches = tl.where((tap == number)[:, None], value[None, :], patches)
    column = tl.arange(0, COLUMNS)
    known = (tap < SIDE * SIDE * CHANNELS)[:, None] & (column < OUTPUTS)[None, :]
    places = column[None, :] * (SIDE * SIDE * CHANNELS) + tap[:, None]
    weight = tl.load(weight_ptr + places, known, other=0.0)
    values = tl.dot(tl.trans(patches), weight, input_precision="ieee")
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column, column < OUTPUTS, other=0.0)
        values += bias.to(dtype).to(tl.float32)[None, :]
    # The padding's zeros are written as such, so that the compiler computes no activation of them.
    out = tl.where((column < OUTPUTS)[None, :], _activated(values, 1.0, ACTIVATION), 0.0)
    mask = real[:, None] & (column < OUTPUTS)[None, :]
    tl.store(out_ptr + pixel.to(tl.int64)[:, None] * OUTPUTS + column[None, :], out, mask)


def _whiten_triton(images: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    images, weight, bias = dense(images, weight, bias)
    out = _whiten_fake(images, weight, bias, activation)
    outputs, channels, side, _ = weight.shape
    pixels = out.numel() // outputs
    sizes, _ = launch_sizes(images)
    launch(
        _whiten_kernel,
        (-(-pixels // sizes.whiten_pixels),),
        *(images, weight, bias, out, pixels),
        HEIGHT=images.shape[2],
        WIDTH=images.shape[3],
        CHANNELS=channels,
        OUTPUTS=outputs,
        SIDE=side,
        ACTIVATION=activation,
        PIXELS=sizes.whiten_pixels,
        TAPS=max(16, 1 << (weight[0].numel() - 1).bit_length()),  # 16: the fewest that a product sums
        COLUMNS=max(16, 1 << (outputs - 1).bit_length()),
        num_warps=sizes.whiten_warps,
    )
    return out


# ----------------------------------------------------------------------------------------------------------- operator


def _whiten(images, weight, bias, activation) -> Tensor:
    small = weight[0].numel() <= _MOST_TAPS and len(weight) <= _MOST_OUTPUTS
    if small and use_triton(images):
        return _whiten_triton(images, weight, bias, activation)
    return whiten_reference(images, weight, bias, activation).contiguous(memory_format=torch.channels_last)


def _whiten_fake(images, weight, bias, activation) -> Tensor:
    height, width = (size - weight.shape[2] + 1 for size in images.shape[2:])
    shape = (images.shape[0], weight.shape[0], height, width)
    return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)


def _products(images, weight, bias, activation) -> list[tuple[int, int]]:
    """Multiply-adds and bytes of the one launch."""
    out = _whiten_fake(images, weight, bias, activation)
    tensors = [tensor for tensor in (images, weight, bias, out) if tensor is not None]
    return [(out.numel() * weight[0].numel(), sum(tensor.numel() * tensor.element_size() for tensor in tensors))]


operator(
    "whiten(Tensor images, Tensor weight, Tensor? bias, str activation) -> Tensor",
    _whiten,
    _whiten_fake,
    products=_products,
)


def whiten(images: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "gelu") -> Tensor:
    """`activation(conv2d(images, weight, bias))`, without padding and without gradient: [N, O, H - k + 1, W - k + 1].

    images: [N, C, H, W], channels-last (else they are copied), float32, float16, bfloat16 or float64; weight: [O, C, k,
    k], likewise; bias: float32 [O] (float64 for float64 images), rounded to the images' dtype. activation: gelu
    (exact), silu or relu. out: the images' dtype, channels-last. Meant for few channels, where torch's convolutions
    are slow.

    The reference rounds the convolution to the images' dtype before the activation; the kernel keeps it in float32, and
    its GELU is exact to 1e-7. So they differ by a rounding of the convolution, and one of the result.

    Raises ValueError for shapes or dtypes that do not fit, an unknown activation, and where a gradient is wanted.
    """
    fits = images.ndim == 4 and images.is_floating_point() and 0 not in images.shape
    if not fits:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; allowed: floating [N, C, H, W], not empty")
    channels, *sides = images.shape[1:]
    fits = weight.ndim == 4 and weight.dtype == images.dtype and 0 not in weight.shape and weight.shape[1] == channels
    if not fits or not weight.shape[2] == weight.shape[3] <= min(sides):
        raise ValueError(
            f"weight is {weight.dtype} {list(weight.shape)}; allowed: {images.dtype} [O, {channels}, k, k] with k "
            f"up to {min(sides)}, as images"
        )
    wide = torch.promote_types(images.dtype, torch.float32)
    if bias is not None and (bias.dtype != wide or bias.shape != weight.shape[:1]):
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; allowed: {wide} [{len(weight)}]")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    if wants_gradient(images, weight, bias):
        raise ValueError("images, weight or bias want a gradient; allowed: none, or torch.no_grad()")
    return torch.ops.fastcifar.whiten(images, weight, bias, activation)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd would record an operation on `tensors` now."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
