"""The Triton kernels of `norm_act_pool`'s gradient and their launches, as forward.py describes them.

With BORDER the gradient of out has one row of pixels and one column more for each image, which are not read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import LaunchSizes, launch
from fastcifar.kernels.norm_act_pool.forward import falling, normal_distribution
from fastcifar.kernels.norm_act_pool.native import dense
from fastcifar.kernels.norm_act_pool.tiling import Sizes, Tiling, places_of, window_corner

# Triton annotates its ranges as no iterators:
# pyright: reportGeneralTypeIssues=false

SIZES = LaunchSizes(
    {
        (8, 0): Sizes(rows=128, channels=32, warps=8, stages=1, programs=2, partials=128),
        # Measured, as those of the forward pass.
        (9, 0): Sizes(rows=32, channels=64, warps=4, stages=3, programs=4, partials=128),
    },
    interpreted=Sizes(rows=2048, channels=64, warps=1, stages=1, programs=1, partials=4),
)


@triton.jit
def _sloped(gradient, y, alpha, ACTIVATION: tl.constexpr):
    """Return `gradient` times the activation's slope at y."""
    if ACTIVATION == "celu":
        gradient *= falling(y, alpha)
    elif ACTIVATION == "relu":
        gradient = tl.where(y <= 0, 0.0, gradient)
    elif ACTIVATION == "gelu":
        below, bell = normal_distribution(y)
        gradient *= below + y * 0.3989422804014327 * bell
    elif ACTIVATION == "silu":
        sigmoid = 1 / (1 + tl.exp(-y))
        gradient *= sigmoid * (1 + y * (1 - sigmoid))
    return gradient


@triton.jit
def _centered_and_slope(gradients, inputs, mask, mean, factor, bias, alpha, ACTIVATION: tl.constexpr):
    """Load a tile by its pointers: the values less their mean, and the gradient before the activation, zero outside
    `mask`."""
    centered = tl.load(inputs, mask, other=0.0).to(tl.float32) - mean[None, :]
    gradient = tl.load(gradients, mask, other=0.0).to(tl.float32)
    return centered, _sloped(gradient, centered * factor[None, :] + bias[None, :], alpha, ACTIVATION)


@triton.jit
def _factor(deviation, scale_ptr, columns, real):
    """Return the factor of centered values: `deviation`, 1 / their standard deviation, times the scale if any."""
    if scale_ptr is not None:
        deviation *= tl.load(scale_ptr + columns, real, other=0.0)
    return deviation


@triton.jit(do_not_specialize=["group_rows", "program_rows", "height", "width"])
def _slope_sums_kernel(
    gradient_ptr,  # of out, [groups * group_rows, channels]; with BORDER as said above
    in_ptr,  # [groups * group_rows, channels]
    mean_ptr,  # float32 [groups, channels]
    var_ptr,  # float32 [groups, channels]
    bias_ptr,  # float32 [channels]
    scale_ptr,  # float32 [channels], or None
    result_ptr,  # out, like gradient; read with sum_relu
    masked_ptr,  # like in: written with sum_relu, the gradient of the sum
    partial_ptr,  # float32 [groups, programs, 2, channels]: sums of the slopes, and of slope * normalized value
    group_rows,
    program_rows,
    channels,
    height,
    width,
    alpha,
    eps,
    ACTIVATION: tl.constexpr,
    BORDER: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    group = tl.program_id(2)
    first = tl.program_id(0) * program_rows
    last = tl.minimum(first + program_rows, group_rows)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = columns < channels
    mean = tl.load(mean_ptr + group * channels + columns, real, other=0.0)
    deviation = tl.rsqrt(tl.load(var_ptr + group * channels + columns, real, other=1.0) + eps)
    factor = _factor(deviation, scale_ptr, columns, real)
    bias = tl.load(bias_ptr + columns, real, other=0.0)
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    products = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & real[None, :]
        all_rows = group * group_rows + rows
        places = all_rows.to(tl.int64)[:, None] * channels + columns[None, :]
        outside = places_of(all_rows, columns, channels, height, width, BORDER)
        centered, slope = _centered_and_slope(
            gradient_ptr + outside, in_ptr + places, mask, mean, factor, bias, alpha, ACTIVATION
        )
        if ACTIVATION == "sum_relu":
            slope = tl.where(tl.load(result_ptr + outside, mask, other=0.0) <= 0, 0.0, slope)
            tl.store(masked_ptr + places, slope, mask)
        sums += slope
        products += slope * centered
    partial = partial_ptr + (group * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + columns
    tl.store(partial, tl.sum(sums, axis=0), real)
    tl.store(partial + channels, tl.sum(products, axis=0) * deviation, real)


@triton.jit
def _merged(partial_ptr, first, last, columns, channels, PARTIALS: tl.constexpr):
    """Return both sums over the partial ones from `first` to before `last`, `PARTIALS` at most."""
    part = first + tl.arange(0, PARTIALS)
    known = (part < last)[:, None] & (columns < channels)[None, :]
    partial = partial_ptr + (part * 2 * channels)[:, None] + columns[None, :]
    sums = tl.sum(tl.load(partial, known, other=0.0), axis=0)
    return sums, tl.sum(tl.load(partial + channels, known, other=0.0), axis=0)


@triton.jit(do_not_specialize=["groups", "group_rows", "program_rows", "partials", "height", "width"])
def _gradient_kernel(
    gradient_ptr,  # of out, [groups * group_rows, channels]; with BORDER as said above
    in_ptr,  # [groups * group_rows, channels]
    argmax_ptr,  # uint8, like in; read with POOL
    mean_ptr,  # float32 [groups, channels]
    var_ptr,  # float32 [groups, channels]
    bias_ptr,  # float32 [channels]
    scale_ptr,  # float32 [channels], or None
    partial_ptr,  # float32 [groups, partials, 2, channels]
    x_gradient_ptr,  # like in, or [N * height * width, channels] with POOL
    bias_gradient_ptr,  # float32 [channels]
    scale_gradient_ptr,  # float32 [channels]
    groups,
    group_rows,
    program_rows,
    partials,
    channels,
    height,
    width,
    alpha,
    eps,
    ACTIVATION: tl.constexpr,
    BORDER: tl.constexpr,
    POOL: tl.constexpr,
    ODD: tl.constexpr,  # with POOL: a last row or column is in no window, and its gradient zero
    PARTIALS: tl.constexpr,  # partial sums read at once, a power of two
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    group = tl.program_id(2)
    first = tl.program_id(0) * program_rows
    last = tl.minimum(first + program_rows, group_rows)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = columns < channels
    if (tl.program_id(0) == 0) & (group == 0):
        bias_gradient = tl.zeros([CHANNELS], tl.float32)
        scale_gradient = tl.zeros([CHANNELS], tl.float32)
        for start in range(0, groups * partials, PARTIALS):
            sums, products = _merged(partial_ptr, start, groups * partials, columns, channels, PARTIALS)
            bias_gradient += sums
            scale_gradient += products
        tl.store(bias_gradient_ptr + columns, bias_gradient, real)
        tl.store(scale_gradient_ptr + columns, scale_gradient, real)
    sums, products = _merged(partial_ptr, group * partials, (group + 1) * partials, columns, channels, PARTIALS)
    mean = tl.load(mean_ptr + group * channels + columns, real, other=0.0)
    deviation = tl.rsqrt(tl.load(var_ptr + group * channels + columns, real, other=1.0) + eps)
    factor = _factor(deviation, scale_ptr, columns, real)
    bias = tl.load(bias_ptr + columns, real, other=0.0)
    out_height = height // 2 if POOL else height
    out_width = width // 2 if POOL else width
    sums /= group_rows
    products *= deviation / group_rows
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & real[None, :]
        all_rows = group * group_rows + rows
        places = all_rows.to(tl.int64)[:, None] * channels + columns[None, :]
        gradients = gradient_ptr + places_of(all_rows, columns, channels, out_height, out_width, BORDER)
        centered, slope = _centered_and_slope(gradients, in_ptr + places, mask, mean, factor, bias, alpha, ACTIVATION)
        gradient = (slope - (centered * products[None, :] + sums[None, :])) * factor[None, :]
        if POOL:
            corners = x_gradient_ptr + window_corner(all_rows, height, width)[:, None] * channels + columns[None, :]
            argmax = tl.load(argmax_ptr + places, mask, other=0)
            tl.store(corners, tl.where(argmax == 0, gradient, 0.0), mask)
            tl.store(corners + channels, tl.where(argmax == 1, gradient, 0.0), mask)
            tl.store(corners + width * channels, tl.where(argmax == 2, gradient, 0.0), mask)
            tl.store(corners + (width + 1) * channels, tl.where(argmax == 3, gradient, 0.0), mask)
            if ODD:
                pixel = all_rows % ((height // 2) * (width // 2))
                right = mask & (pixel % (width // 2) * 2 + 3 == width)[:, None]
                below = mask & (pixel // (width // 2) * 2 + 3 == height)[:, None]
                zeros = tl.zeros([ROWS, CHANNELS], tl.float32)
                tl.store(corners + 2 * channels, zeros, right)
                tl.store(corners + (width + 2) * channels, zeros, right)
                tl.store(corners + 2 * width * channels, zeros, below)
                tl.store(corners + (2 * width + 1) * channels, zeros, below)
                tl.store(corners + (2 * width + 2) * channels, zeros, right & below)
        else:
            tl.store(x_gradient_ptr + places, gradient, mask)


def triton_backward(
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
    gradient, bias, scale, result = dense(gradient, bias, scale, result)
    groups, pool = len(mean), argmax is not None
    channels, height, width = x_gradient.shape[1:]
    bias_gradient, scale_gradient = torch.empty_like(bias), torch.empty_like(bias)
    sizes = SIZES.of(inputs)
    first, second = Tiling(sizes, inputs, groups, partial=True), Tiling(sizes, inputs, groups, windows=pool)
    partial = first.new_partials(inputs)
    launch(
        _slope_sums_kernel,
        first.grid,
        *(gradient, inputs, mean, var, bias, scale, result, masked, partial),
        *(first.group_rows, first.program_rows, channels, *inputs.shape[2:], alpha, eps),
        ACTIVATION=activation,
        BORDER=border,
        **first.tile,
        **first.stages,
    )
    if masked is not None:
        gradient, activation, border = masked, "none", False
    launch(
        _gradient_kernel,
        second.grid,
        *(gradient, inputs, argmax, mean, var, bias, scale, partial, x_gradient, bias_gradient, scale_gradient),
        *(groups, second.group_rows, second.program_rows, first.programs, channels, height, width, alpha, eps),
        ACTIVATION=activation,
        BORDER=border,
        POOL=pool,
        ODD=pool and bool(height % 2 or width % 2),
        PARTIALS=sizes.partials,
        **second.tile,
        **second.stages,
    )
    return bias_gradient, scale_gradient
