"""The Triton kernel of `whiten` and its launch."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import LaunchSizes, launch, product_side
from fastcifar.kernels.norm_act_pool.forward import activated
from fastcifar.kernels.norm_act_pool.native import dense, inside
from fastcifar.kernels.norm_act_pool.tiling import store_bordered

# Triton annotates its ranges as no iterators:
# pyright: reportGeneralTypeIssues=false


@dataclass(frozen=True)
class Sizes:
    pixels: int
    """Pixels of the output per program; 32 a warp give each thread one."""
    warps: int


SIZES = LaunchSizes({(8, 0): Sizes(pixels=64, warps=2)}, interpreted=Sizes(pixels=4096, warps=1))


@triton.jit(do_not_specialize=["pixels"])
def _whiten_kernel(
    images_ptr,  # [N, HEIGHT, WIDTH, CHANNELS]
    weight_ptr,  # [OUTPUTS, SIDE, SIDE, CHANNELS]
    bias_ptr,  # float32 [OUTPUTS], or None
    out_ptr,  # [pixels, OUTPUTS], the pixels being N * (HEIGHT - SIDE + 1) * (WIDTH - SIDE + 1); with BORDER more
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BORDER: tl.constexpr,
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
    out = tl.where((column < OUTPUTS)[None, :], activated(values, 1.0, ACTIVATION), 0.0)
    mask = real[:, None] & (column < OUTPUTS)[None, :]
    if BORDER:
        store_bordered(out_ptr, out, pixel, column, mask, OUTPUTS, HEIGHT - SIDE + 1, WIDTH - SIDE + 1)
    else:
        tl.store(out_ptr + pixel.to(tl.int64)[:, None] * OUTPUTS + column[None, :], out, mask)


def whiten_triton(
    images: Tensor, weight: Tensor, bias: Tensor | None, activation: str, out: Tensor, border: bool
) -> None:
    """Write `whiten`'s result into `out`, whose strides are channels-last."""
    images, weight, bias = dense(images, weight, bias)
    outputs, channels, side, _ = weight.shape
    pixels = inside(out, border).numel() // outputs
    sizes = SIZES.of(images)
    launch(
        _whiten_kernel,
        (-(-pixels // sizes.pixels),),
        *(images, weight, bias, out, pixels),
        HEIGHT=images.shape[2],
        WIDTH=images.shape[3],
        CHANNELS=channels,
        OUTPUTS=outputs,
        SIDE=side,
        ACTIVATION=activation,
        BORDER=border,
        PIXELS=sizes.pixels,
        TAPS=product_side(weight[0].numel()),
        COLUMNS=product_side(outputs),
        num_warps=sizes.warps,
    )
