"""The Triton kernels of `norm_act_pool` and their launches: the forward pass, in two, and inference.

To the kernels a tensor of images is [rows, channels], a row being a pixel; the rows of a group are consecutive. A
program works on `program_rows` rows of one group and CHANNELS channels, a tile of ROWS rows at a time. "in" is what is
normalized: x, or the pooled x. The first launch of a pass leaves partial sums, and every program of the second merges
those of its group: no atomics, so equal inputs give equal bits. Offsets are 64-bit: a large evaluation batch passes
2^31 elements.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import LaunchSizes, launch
from fastcifar.kernels.norm_act_pool.native import dense, empty_out, empty_pooled, inside, out_size
from fastcifar.kernels.norm_act_pool.reference import unbiased
from fastcifar.kernels.norm_act_pool.tiling import Sizes, Tiling, store_bordered, window_corner

# Triton annotates its ranges as no iterators, and what may be a constexpr as one:
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false


SIZES = LaunchSizes(
    {
        (8, 0): Sizes(rows=128, channels=32, warps=8, stages=1, programs=3, partials=128),
        # Measured on an H100: the best of 90 for the layers of SpeedrunNet and 512 images.
        (9, 0): Sizes(rows=64, channels=32, warps=4, stages=3, programs=4, partials=128),
    },
    interpreted=Sizes(rows=2048, channels=64, warps=1, stages=1, programs=1, partials=4),
)


@triton.jit
def activated(y, alpha, ACTIVATION: tl.constexpr):
    """Return the activation of y."""
    if ACTIVATION == "celu":
        y = tl.where(y > 0, y, alpha * (falling(y, alpha) - 1))
    elif ACTIVATION == "relu" or ACTIVATION == "sum_relu":
        y = tl.where(y < 0, 0.0, y)
    elif ACTIVATION == "gelu":
        below, _ = normal_distribution(y)
        y *= below
    elif ACTIVATION == "silu":
        y = y / (1 + tl.exp(-y))
    return y


@triton.jit
def _activated_with(y, residual_ptr, places, mask, alpha, ACTIVATION: tl.constexpr):
    """Return the activation of y, plus the residual if any; with sum_relu that of their sum."""
    if ACTIVATION != "sum_relu":
        y = activated(y, alpha, ACTIVATION)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + places, mask, other=0.0).to(tl.float32)
    if ACTIVATION == "sum_relu":
        y = activated(y, alpha, ACTIVATION)
    return y


@triton.jit
def falling(y, alpha):
    """Return CELU's slope: exp(y / alpha) below zero, 1 above; NaN for NaN."""
    return tl.exp(tl.where(y > 0, 0.0, y) * (1 / alpha))


@triton.jit
def normal_distribution(y):
    """Return the standard normal distribution function at y, and exp(-y * y / 2). By Abramowitz and Stegun's 7.1.26, to
    1e-7: with `tl.erf`, which does not share its exponential with the density, these kernels have up to a third more
    instructions, and those bind them, not bytes."""
    bell = tl.exp2(-0.72134752 * y * y)  # -0.5 / log(2)
    wide = 1 + 0.23164189 * tl.abs(y)  # 0.3275911 / sqrt(2)
    t = tl.rsqrt(wide * wide)  # 1 / wide, in one instruction
    tail = ((((0.5307027145 * t - 0.7265760135) * t + 0.7107068705) * t - 0.142248368) * t + 0.127414796) * t * bell
    return tl.where(y < 0, tail, 1 - tail), bell


@triton.jit
def first_maximum(a, b, c, d):
    """Return the first maximum of four, in row-major order of a window, and its place, 0 to 3; NaN for NaN."""
    top = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    bottom = tl.maximum(c, d, propagate_nan=tl.PropagateNan.ALL)
    place = tl.where(bottom > top, tl.where(d > c, 3, 2), tl.where(b > a, 1, 0))
    return tl.maximum(top, bottom, propagate_nan=tl.PropagateNan.ALL), place


@triton.jit
def _max_of_window(x_ptr, rows, columns, mask, channels, height, width):
    """Return the first maximum of the 2x2 windows of the pooled rows, in float32, and its place, 0 to 3."""
    corners = x_ptr + window_corner(rows, height, width)[:, None] * channels + columns[None, :]
    a = tl.load(corners, mask, other=0.0).to(tl.float32)
    b = tl.load(corners + channels, mask, other=0.0).to(tl.float32)
    c = tl.load(corners + width * channels, mask, other=0.0).to(tl.float32)
    d = tl.load(corners + (width + 1) * channels, mask, other=0.0).to(tl.float32)
    return first_maximum(a, b, c, d)


@triton.jit(do_not_specialize=["group_rows", "program_rows", "height", "width"])
def _moments_kernel(
    x_ptr,  # [groups * group_rows, channels], or [N * height * width, channels] with POOL
    pooled_ptr,  # [groups * group_rows, channels], written with POOL
    argmax_ptr,  # uint8, like pooled
    partial_ptr,  # float32 [groups, programs, 2, channels]: mean and sum of squared deviations of a program's rows
    group_rows,
    program_rows,
    channels,
    height,
    width,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    group = tl.program_id(2)
    first = tl.program_id(0) * program_rows
    last = tl.minimum(first + program_rows, group_rows)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = columns < channels
    # Sums of deviations from a first value: no cancellation however far the mean is from zero, and little where that
    # value is far from it.
    row = group * group_rows + first + tl.arange(0, 1)
    if POOL:
        value, _ = _max_of_window(x_ptr, row, columns, real[None, :], channels, height, width)
    else:
        value = tl.load(x_ptr + row.to(tl.int64)[:, None] * channels + columns[None, :], real[None, :], other=0.0)
    shift = tl.sum(value.to(tl.float32), axis=0)
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & real[None, :]
        all_rows = group * group_rows + rows
        places = all_rows.to(tl.int64)[:, None] * channels + columns[None, :]
        if POOL:
            values, argmax = _max_of_window(x_ptr, all_rows, columns, mask, channels, height, width)
            tl.store(pooled_ptr + places, values, mask)
            tl.store(argmax_ptr + places, argmax.to(tl.uint8), mask)
        else:
            values = tl.load(x_ptr + places, mask, other=0.0).to(tl.float32)
        values = tl.where(mask, values - shift[None, :], 0.0)
        sums += values
        squares += values * values
    count = (last - first).to(tl.float32)
    total = tl.sum(sums, axis=0)
    partial = partial_ptr + (group * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + columns
    tl.store(partial, shift + total / count, real)
    squared = tl.sum(squares, axis=0) - total * total / count
    tl.store(partial + channels, tl.where(squared < 0, 0.0, squared), real)  # rounding can make 0 negative; NaN stays


@triton.jit
def _moments_of_group(
    group, partial_ptr, partials, partial_rows, group_rows, columns, channels, PARTIALS: tl.constexpr
):
    """Return mean and biased variance of a group, from the partial ones of its programs."""
    part = tl.arange(0, PARTIALS)
    known = (part < partials)[:, None] & (columns < channels)[None, :]
    partial = partial_ptr + ((group * partials + part) * 2 * channels)[:, None] + columns[None, :]
    counts = tl.minimum(tl.where(part < partials, group_rows - part * partial_rows, 0), partial_rows)
    counts = counts.to(tl.float32)[:, None]
    means = tl.load(partial, known, other=0.0)
    deviations = tl.load(partial + channels, known, other=0.0)
    mean = tl.sum(means * counts, axis=0) / group_rows
    offsets = means - mean[None, :]
    return mean, tl.sum(deviations + counts * offsets * offsets, axis=0) / group_rows


@triton.jit
def _move(running_ptr, columns, real, target, momentum):
    """Move a running statistic `momentum` of the way to `target`."""
    before = tl.load(running_ptr + columns, real, other=0.0)
    tl.store(running_ptr + columns, before + momentum * (target - before), real)


@triton.jit(do_not_specialize=["group_rows", "program_rows", "partials", "partial_rows", "height", "width"])
def _normalize_kernel(
    in_ptr,  # [groups * group_rows, channels]
    partial_ptr,  # float32 [groups, partials, 2, channels], of `partial_rows` rows each, the last of fewer
    mean_ptr,  # float32 [groups, channels], written
    var_ptr,  # float32 [groups, channels], written
    running_mean_ptr,  # float32 [channels], moved, or None
    running_var_ptr,  # float32 [channels], moved, or None
    bias_ptr,  # float32 [channels]
    scale_ptr,  # float32 [channels], or None
    residual_ptr,  # like in, or None
    out_ptr,  # [groups * group_rows, channels]; with BORDER [N * (height + 1) * (width + 1), channels]
    group_rows,
    program_rows,
    partials,
    partial_rows,
    channels,
    height,
    width,
    momentum,
    unbiased,
    alpha,
    eps,
    ACTIVATION: tl.constexpr,
    BORDER: tl.constexpr,
    GROUPS: tl.constexpr,
    PARTIALS: tl.constexpr,  # a power of two, at least `partials`
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    group = tl.program_id(2)
    first = tl.program_id(0) * program_rows
    last = tl.minimum(first + program_rows, group_rows)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = columns < channels
    mean, var = _moments_of_group(group, partial_ptr, partials, partial_rows, group_rows, columns, channels, PARTIALS)
    if tl.program_id(0) == 0:
        tl.store(mean_ptr + group * channels + columns, mean, real)
        tl.store(var_ptr + group * channels + columns, var, real)
        if running_mean_ptr is not None:  # noqa: SIM102  (decided when the kernel is compiled, the other when it runs)
            if group == 0:
                mean_sum, var_sum = mean, var
                for other in tl.static_range(1, GROUPS):  # unrolled: their loads do not wait for one another
                    other_mean, other_var = _moments_of_group(
                        other, partial_ptr, partials, partial_rows, group_rows, columns, channels, PARTIALS
                    )
                    mean_sum += other_mean
                    var_sum += other_var
                _move(running_mean_ptr, columns, real, mean_sum / GROUPS, momentum)
                _move(running_var_ptr, columns, real, var_sum / GROUPS * unbiased, momentum)
    factor = tl.rsqrt(var + eps)
    if scale_ptr is not None:
        factor *= tl.load(scale_ptr + columns, real, other=0.0)
    bias = tl.load(bias_ptr + columns, real, other=0.0)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < last)[:, None] & real[None, :]
        all_rows = group * group_rows + rows
        places = all_rows.to(tl.int64)[:, None] * channels + columns[None, :]
        values = tl.load(in_ptr + places, mask, other=0.0).to(tl.float32)
        out = (values - mean[None, :]) * factor[None, :] + bias[None, :]
        out = _activated_with(out, residual_ptr, places, mask, alpha, ACTIVATION)
        if BORDER:
            store_bordered(out_ptr, out, all_rows, columns, mask, channels, height, width)
        else:
            tl.store(out_ptr + places, out, mask)


@triton.jit(do_not_specialize=["rows_total", "height", "width"])
def _inference_kernel(
    x_ptr,  # [rows_total, channels], or [N * height * width, channels] with POOL
    mean_ptr,  # float32 [channels]
    var_ptr,  # float32 [channels]
    bias_ptr,  # float32 [channels]
    scale_ptr,  # float32 [channels], or None
    residual_ptr,  # [rows_total, channels], or None
    out_ptr,  # likewise; with BORDER [N * (out's height + 1) * (out's width + 1), channels]
    rows_total,
    channels,
    height,
    width,
    alpha,
    eps,
    ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,
    BORDER: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = columns < channels
    mask = (rows < rows_total)[:, None] & real[None, :]
    places = rows.to(tl.int64)[:, None] * channels + columns[None, :]
    factor = tl.rsqrt(tl.load(var_ptr + columns, real, other=1.0) + eps)
    if scale_ptr is not None:
        factor *= tl.load(scale_ptr + columns, real, other=0.0)
    bias = tl.load(bias_ptr + columns, real, other=0.0)
    mean = tl.load(mean_ptr + columns, real, other=0.0)
    if POOL:
        values, _ = _max_of_window(x_ptr, rows, columns, mask, channels, height, width)
    else:
        values = tl.load(x_ptr + places, mask, other=0.0).to(tl.float32)
    out = (values - mean[None, :]) * factor[None, :] + bias[None, :]
    out = _activated_with(out, residual_ptr, places, mask, alpha, ACTIVATION)
    if BORDER:
        if POOL:
            height, width = height // 2, width // 2
        store_bordered(out_ptr, out, rows, columns, mask, channels, height, width)
    else:
        tl.store(out_ptr + places, out, mask)


def triton_forward(
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
    x, bias, scale, residual, *moving = dense(x, bias, scale, residual, running_mean, running_var)
    channels, height, width = x.shape[1:]
    pooled, argmax = empty_pooled(x, pool)
    inputs = pooled if pool else x
    out = empty_out(x, pool, border)
    mean, var = (x.new_empty((groups, channels), dtype=torch.float32) for _ in range(2))
    sizes = SIZES.of(x)
    first, second = Tiling(sizes, inputs, groups, windows=pool, partial=True), Tiling(sizes, inputs, groups)
    partial = first.new_partials(inputs)
    launch(
        _moments_kernel,
        first.grid,
        *(x, pooled, argmax, partial, first.group_rows, first.program_rows, channels, height, width),
        POOL=pool,
        **first.tile,
        **first.stages,
    )
    launch(
        _normalize_kernel,
        second.grid,
        *(inputs, partial, mean, var, *moving, bias, scale, residual, out),
        *(second.group_rows, second.program_rows, first.programs, first.program_rows, channels, *out_size(x, pool)),
        *(momentum, unbiased(second.group_rows), alpha, eps),
        ACTIVATION=activation,
        BORDER=border,
        GROUPS=groups if running_mean is not None else 1,
        PARTIALS=max(16, 1 << (first.programs - 1).bit_length()),  # few values, each compiled for itself
        **second.tile,
        **second.stages,
    )
    for running, moved in zip((running_mean, running_var), moving, strict=True):
        if running is not None and not running.is_contiguous():
            running.copy_(moved)
    return out, mean, var, pooled, argmax


def triton_inference(
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
    x, mean, var, bias, scale, residual = dense(x, mean, var, bias, scale, residual)
    channels, height, width = x.shape[1:]
    out = empty_out(x, pool, border)
    tiling = Tiling(SIZES.of(x), inside(out, border), 1, windows=pool)
    launch(
        _inference_kernel,
        (-(-tiling.group_rows // tiling.tile["ROWS"]), tiling.grid[1]),
        *(x, mean, var, bias, scale, residual, out, tiling.group_rows, channels, height, width, alpha, eps),
        ACTIVATION=activation,
        POOL=pool,
        BORDER=border,
        **tiling.tile,
    )
    return out
