"""The Triton kernels of `conv_pool` and its filters' gradient, and their launches.

A pixel is one of the pooled image; its window's four convolutions read a patch of 4 x 4 pixels of x. The images of x
lie channels-last, so a row of a patch is 4 * CHANNELS neighboring values.

Forward pass. Each row of a patch is loaded once. It is multiplied by the filters' rows twice over, for the left and the
right column of windows: a matrix [4 * CHANNELS, outputs, 2], a quarter of which is zeros. These stay in shared memory,
and products are 128 columns wide, where narrower ones would wait for shared memory. A window's columns are neighbors in
the product, so that a thread has both.

Gradient. Of the four places of a window one has the gradient. For each place the gradient, zero where it belongs to
another, is multiplied by the 3 x 3 pixels that the filters read there. Every program leaves the sum over its pixels,
and a second launch adds those up: no atomics, so equal inputs give equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import LaunchSizes, launch, multiprocessors, product_side
from fastcifar.kernels.norm_act_pool.forward import first_maximum
from fastcifar.kernels.norm_act_pool.native import dense

# Triton annotates its ranges as no iterators, and what may be a constexpr as one:
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


@dataclass(frozen=True)
class Sizes:
    pixels: int
    """Pixels per tile of the forward pass; 64 or more, for the matrix units of the generation 9.0."""
    outputs: int
    """Outputs per tile, at most."""
    warps: int
    stages: int
    """Tiles on their way from memory at once, one of which is worked on; 1: the next is asked for when it is needed."""
    programs: int
    """Programs that a multiprocessor runs at once."""
    gradient_pixels: int
    """Pixels per tile of the gradient: the terms that a product sums."""
    gradient_columns: int
    """Places of a filter per program, a power of two: each program sums [outputs, columns]."""
    gradient_warps: int
    gradient_stages: int
    gradient_programs: int
    merged: int
    """Elements of the filters per program of the last launch."""


_AMPERE = Sizes(
    pixels=32,
    outputs=32,
    warps=4,
    stages=1,
    programs=4,
    gradient_pixels=32,
    gradient_columns=64,
    gradient_warps=4,
    gradient_stages=1,
    gradient_programs=3,
    merged=64,
)
SIZES = LaunchSizes(
    {
        (8, 0): _AMPERE,
        (9, 0): Sizes(
            pixels=64,
            outputs=64,
            warps=4,
            stages=1,
            programs=2,
            gradient_pixels=32,
            gradient_columns=128,
            gradient_warps=4,
            gradient_stages=1,
            gradient_programs=3,
            merged=64,
        ),
        (12, 0): _AMPERE,  # 99 KiB, and no matrix units of the kind that (9, 0) is for
    },
    interpreted=Sizes(
        pixels=4096,
        outputs=64,
        warps=1,
        stages=1,
        programs=1,
        gradient_pixels=4096,
        gradient_columns=256,
        gradient_warps=1,
        gradient_stages=1,
        gradient_programs=2,
        merged=4096,
    ),
)

_PARTS = 32
"""Partial sums that the last launch reads at once."""


@triton.jit
def _corner(pixel, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BORDERED: tl.constexpr):
    """Return the pixel of x, over all images, at the top left of each pooled pixel's patch, and its row and column in
    its image; without a border it may lie outside of it."""
    out_height: tl.constexpr = HEIGHT // 2 - 1 if BORDERED else HEIGHT // 2
    out_width: tl.constexpr = WIDTH // 2 - 1 if BORDERED else WIDTH // 2
    all_rows = pixel // out_width
    row = all_rows % out_height * 2
    column = pixel % out_width * 2
    if not BORDERED:
        row, column = row - 1, column - 1
    image = (all_rows // out_height).to(tl.int64)
    return (image * HEIGHT + row) * WIDTH + column, row, column


@triton.jit
def _inside(mask, row, column, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BORDERED: tl.constexpr):
    """Return `mask` where pixels are of x, not of its padding."""
    if not BORDERED:
        mask = mask & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    return mask


@triton.jit
def _filters(
    weight_ptr,
    output,
    side,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROW: tl.constexpr,
    FIRST: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Load row ROW of the filters for the SIZE values of a patch's row from FIRST on, [SIZE, outputs]: zeros for those
    that the window's column `side`, 0 or 1, does not read."""
    value = FIRST + tl.arange(0, SIZE)
    column = (value // CHANNELS)[:, None] - side[None, :]
    known = (column >= 0) & (column < 3) & (output < OUTPUTS)[None, :]
    places = value[:, None] + ((output * 3 + ROW) * 3 * CHANNELS - side * CHANNELS)[None, :]
    return tl.load(weight_ptr + places, known, other=0.0)


@triton.jit
def _patch_row(
    corner_ptr,  # each pixel's
    real,
    row,
    column,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BORDERED: tl.constexpr,
    ROW: tl.constexpr,
    FIRST: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Load the SIZE values from FIRST on of row ROW of each patch, [pixels, SIZE]."""
    value = FIRST + tl.arange(0, SIZE)
    columns = column[:, None] + (value // CHANNELS)[None, :]
    mask = _inside(real[:, None], (row + ROW)[:, None], columns, HEIGHT, WIDTH, BORDERED)
    return tl.load(corner_ptr[:, None] + (ROW * WIDTH * CHANNELS + value)[None, :], mask, other=0.0)


@triton.jit
def _with_row(top, bottom, values, weight_0, weight_1, weight_2, ROW: tl.constexpr):
    """Return both rows of the windows with the products of row ROW of the patches: the upper reads rows 0 to 2, the
    lower 1 to 3."""
    if ROW == 0:
        top = tl.dot(values, weight_0, top)
    elif ROW == 1:
        top = tl.dot(values, weight_1, top)
        bottom = tl.dot(values, weight_0, bottom)
    elif ROW == 2:
        top = tl.dot(values, weight_2, top)
        bottom = tl.dot(values, weight_1, bottom)
    else:
        bottom = tl.dot(values, weight_2, bottom)
    return top, bottom


@triton.jit(do_not_specialize=["pixels"])
def _conv_pool_kernel(
    x_ptr,  # float16 or bfloat16 [N, HEIGHT, WIDTH, CHANNELS]
    weight_ptr,  # like x, [OUTPUTS, 3, 3, CHANNELS]
    pooled_ptr,  # like x, [pixels, OUTPUTS]
    argmax_ptr,  # uint8, like pooled, or None
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BORDERED: tl.constexpr,
    WIDE: tl.constexpr,  # with REST the 4 * CHANNELS values of a patch's row, in powers of two
    REST: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,  # outputs of this program, a power of two
    STAGES: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    column = tl.arange(0, 2 * COLUMNS)
    output, side = tl.program_id(1) * COLUMNS + column // 2, column % 2
    weight_0 = _filters(weight_ptr, output, side, OUTPUTS, CHANNELS, 0, 0, WIDE)
    weight_1 = _filters(weight_ptr, output, side, OUTPUTS, CHANNELS, 1, 0, WIDE)
    weight_2 = _filters(weight_ptr, output, side, OUTPUTS, CHANNELS, 2, 0, WIDE)
    if REST:
        rest_0 = _filters(weight_ptr, output, side, OUTPUTS, CHANNELS, 0, WIDE, REST)
        rest_1 = _filters(weight_ptr, output, side, OUTPUTS, CHANNELS, 1, WIDE, REST)
        rest_2 = _filters(weight_ptr, output, side, OUTPUTS, CHANNELS, 2, WIDE, REST)
    own = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    for tile in tl.range(tl.program_id(0), tl.cdiv(pixels, PIXELS), tl.num_programs(0), num_stages=STAGES):
        pixel = tile * PIXELS + tl.arange(0, PIXELS)
        real = pixel < pixels
        corner, row, across = _corner(pixel, HEIGHT, WIDTH, BORDERED)
        corner_ptr = x_ptr + corner * CHANNELS
        top = tl.zeros([PIXELS, 2 * COLUMNS], tl.float32)
        bottom = tl.zeros([PIXELS, 2 * COLUMNS], tl.float32)
        for number in tl.static_range(4):
            values = _patch_row(corner_ptr, real, row, across, HEIGHT, WIDTH, CHANNELS, BORDERED, number, 0, WIDE)
            top, bottom = _with_row(top, bottom, values, weight_0, weight_1, weight_2, number)
            if REST:
                values = _patch_row(
                    corner_ptr, real, row, across, HEIGHT, WIDTH, CHANNELS, BORDERED, number, WIDE, REST
                )
                top, bottom = _with_row(top, bottom, values, rest_0, rest_1, rest_2, number)
        # Rounded before they are compared: of values that are equal in x's dtype the first gets the gradient.
        a, b = tl.split(top.to(dtype).to(tl.float32).reshape(PIXELS, COLUMNS, 2))
        c, d = tl.split(bottom.to(dtype).to(tl.float32).reshape(PIXELS, COLUMNS, 2))
        values, argmax = first_maximum(a, b, c, d)
        places = pixel.to(tl.int64)[:, None] * OUTPUTS + own[None, :]
        mask = real[:, None] & (own < OUTPUTS)[None, :]
        tl.store(pooled_ptr + places, values.to(dtype), mask)
        if argmax_ptr is not None:
            tl.store(argmax_ptr + places, argmax.to(tl.uint8), mask)


@triton.jit(do_not_specialize=["pixels", "program_pixels"])
def _filters_gradient_kernel(
    gradient_ptr,  # of pooled, float16 or bfloat16 [pixels, OUTPUTS]
    argmax_ptr,  # uint8, like it
    x_ptr,  # like the gradient, [N, HEIGHT, WIDTH, CHANNELS]
    partial_ptr,  # float32 [programs, OUTPUTS, 9 * CHANNELS]
    pixels,
    program_pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BORDERED: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,  # outputs of this program, a power of two
    COLUMNS: tl.constexpr,  # places of a filter, likewise
    STAGES: tl.constexpr,
):
    first = tl.program_id(0) * program_pixels
    last = tl.minimum(first + program_pixels, pixels)
    output = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known = place < 9 * CHANNELS
    down, rest = place // (3 * CHANNELS), place % (3 * CHANNELS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(first, last, PIXELS, num_stages=STAGES):
        pixel = start + tl.arange(0, PIXELS)
        real = pixel < last
        corner, row, column = _corner(pixel, HEIGHT, WIDTH, BORDERED)
        corner_ptr = x_ptr + corner * CHANNELS
        own = pixel.to(tl.int64)[:, None] * OUTPUTS + output[None, :]
        mask = real[:, None] & (output < OUTPUTS)[None, :]
        gradient = tl.load(gradient_ptr + own, mask, other=0.0)
        argmax = tl.load(argmax_ptr + own, mask, other=0)
        for window in tl.static_range(4):
            rows = (row + window // 2)[:, None] + down[None, :]
            columns = (column + window % 2)[:, None] + (place // CHANNELS % 3)[None, :]
            read = _inside(real[:, None] & known[None, :], rows, columns, HEIGHT, WIDTH, BORDERED)
            offset = (down + window // 2) * WIDTH * CHANNELS + rest + window % 2 * CHANNELS
            values = tl.load(corner_ptr[:, None] + offset[None, :], read, other=0.0)
            part = tl.where(argmax == window, gradient, 0.0).to(gradient.dtype)
            total = tl.dot(tl.trans(part), values, total)
    partial = partial_ptr + tl.program_id(0) * OUTPUTS * 9 * CHANNELS
    places = output[:, None] * (9 * CHANNELS) + place[None, :]
    tl.store(partial + places, total, (output < OUTPUTS)[:, None] & known[None, :])


@triton.jit(do_not_specialize=["parts"])
def _filters_sum_kernel(
    partial_ptr,  # float32 [parts, size]
    out_ptr,  # [size]
    parts,
    size,
    PARTS: tl.constexpr,  # read at once
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([PARTS, BLOCK], tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & (place < size)[None, :]
        total += tl.load(partial_ptr + part.to(tl.int64)[:, None] * size + place[None, :], mask, other=0.0)
    tl.store(out_ptr + place, tl.sum(total, axis=0), place < size)


def conv_pool_triton(x: Tensor, weight: Tensor, bordered: bool, pooled: Tensor, argmax: Tensor | None) -> None:
    """Write `conv_pool`'s result into `pooled`, whose strides are channels-last, and the maxima's places into `argmax`
    unless it is None."""
    x, weight = dense(x, weight)
    (outputs, channels), sizes = weight.shape[:2], SIZES.of(x)
    pixels, columns = pooled.numel() // outputs, min(sizes.outputs, product_side(outputs))
    wide, across = 1 << (4 * channels).bit_length() - 1, -(-outputs // columns)
    programs = max(1, min(-(-pixels // sizes.pixels), sizes.programs * multiprocessors(x) // across))
    launch(
        _conv_pool_kernel,
        (programs, across),
        *(x, weight, pooled, argmax, pixels),
        HEIGHT=x.shape[2],
        WIDTH=x.shape[3],
        CHANNELS=channels,
        OUTPUTS=outputs,
        BORDERED=bordered,
        WIDE=wide,
        REST=4 * channels - wide,
        PIXELS=sizes.pixels,
        COLUMNS=columns,
        STAGES=sizes.stages,
        num_warps=sizes.warps,
    )


def conv_pool_backward_triton(
    gradient: Tensor, argmax: Tensor, x: Tensor, bordered: bool, weight_gradient: Tensor
) -> None:
    """Write the filters' gradient, whose strides are channels-last."""
    gradient, argmax, x = dense(gradient, argmax, x)
    (outputs, channels), sizes = weight_gradient.shape[:2], SIZES.of(x)
    pixels, rows = gradient.numel() // outputs, min(64, product_side(outputs))
    columns = min(sizes.gradient_columns, product_side(9 * channels))
    across = (-(-9 * channels // columns), -(-outputs // rows))
    tiles = -(-pixels // sizes.gradient_pixels)
    programs = max(1, min(tiles, sizes.gradient_programs * multiprocessors(x) // (across[0] * across[1])))
    program_pixels = -(-tiles // programs) * sizes.gradient_pixels
    programs = -(-pixels // program_pixels)
    partial = torch.empty((programs, weight_gradient.numel()), dtype=torch.float32, device=x.device)
    launch(
        _filters_gradient_kernel,
        (programs, *across),
        *(gradient, argmax, x, partial, pixels, program_pixels),
        HEIGHT=x.shape[2],
        WIDTH=x.shape[3],
        CHANNELS=channels,
        OUTPUTS=outputs,
        BORDERED=bordered,
        PIXELS=sizes.gradient_pixels,
        ROWS=rows,
        COLUMNS=columns,
        STAGES=sizes.gradient_stages,
        num_warps=sizes.gradient_warps,
        # Else some forms take a few registers more, and a multiprocessor runs a program less at once.
        maxnreg=min(255, 65536 // (sizes.gradient_programs * sizes.gradient_warps * 32) // 8 * 8),
    )
    launch(
        _filters_sum_kernel,
        (-(-weight_gradient.numel() // sizes.merged),),
        *(partial, weight_gradient, programs, weight_gradient.numel()),
        PARTS=_PARTS,
        BLOCK=sizes.merged,
        num_warps=4,
    )
