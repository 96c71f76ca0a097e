"""The Triton kernels of `muon_direction` and `muon_update`, and their launches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.flat_muon import ALIGN, FIELDS, filters_of
from fastcifar.kernels.launch import LaunchSizes, launch


@dataclass(frozen=True)
class Sizes:
    block: int
    """Elements of one filter per program."""
    warps: int


SIZES = LaunchSizes({(8, 0): Sizes(block=2048, warps=8)}, interpreted=Sizes(block=65536, warps=1))


# `layout_ptr`: int32 [filters, 6]: a layout's five numbers and the place of the first row among all filters' rows.
# A program works on BLOCK elements of one filter, the gap behind it counted in: so all but x is accessed in whole
# vectors.


@triton.jit
def _elements(layout_ptr, BLOCK: tl.constexpr):
    """Return the places of a program's elements in the filter and in the flat buffers, and the mask of the latter."""
    fields = layout_ptr + tl.program_id(1) * 6
    start = tl.multiple_of(tl.load(fields), 32)
    size = tl.multiple_of(tl.cdiv(tl.load(fields + 1) * tl.load(fields + 2), 32) * 32, 32)
    inside = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return inside, start + inside, inside < size


@triton.jit
def _in_batches(layout_ptr, inside):
    """Return the rows of a filter's elements, their places in x, and their mask: those of the gap have none."""
    fields = layout_ptr + tl.program_id(1) * 6
    rows, columns = tl.load(fields + 1), tl.load(fields + 2)
    row = inside // columns
    return row, tl.load(fields + 3) + row * tl.load(fields + 4) + (inside - row * columns), inside < rows * columns


@triton.jit
def _momentum_kernel(
    weights_ptr,  # float32 [length]
    grads_ptr,  # float32, float16 or bfloat16 [length]
    velocity_ptr,  # float32 [length]
    layout_ptr,  # int32 [filters, 6]
    partial_ptr,  # float32 [filters, programs, 2]: sums of squared directions and of squared weights
    momentum,
    BLOCK: tl.constexpr,
):
    _, places, mask = _elements(layout_ptr, BLOCK)
    gradient = tl.load(grads_ptr + places, mask, other=0.0).to(tl.float32)
    velocity = momentum * tl.load(velocity_ptr + places, mask, other=0.0) + gradient
    tl.store(velocity_ptr + places, velocity, mask)
    direction = gradient + momentum * velocity
    weights = tl.load(weights_ptr + places, mask, other=0.0)
    partial = partial_ptr + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(partial, tl.sum(direction * direction, axis=0))
    tl.store(partial + 1, tl.sum(weights * weights, axis=0))


@triton.jit(do_not_specialize=["partials"])
def _direction_kernel(
    grads_ptr,  # float32, float16 or bfloat16 [length]
    velocity_ptr,  # float32 [length]
    layout_ptr,  # int32 [filters, 6]
    partial_ptr,  # float32 [filters, partials, 2]
    x_ptr,  # float32, float16 or bfloat16 [all batches]
    norms_ptr,  # float32 [filters], of the weights, written
    partials,
    momentum,
    BLOCK: tl.constexpr,
):
    inside, places, mask = _elements(layout_ptr, BLOCK)
    directions = tl.zeros([BLOCK], tl.float32)
    weights = tl.zeros([BLOCK], tl.float32)
    for first in range(0, partials, BLOCK):
        part = first + tl.arange(0, BLOCK)
        partial = partial_ptr + (tl.program_id(1) * partials + part) * 2
        directions += tl.load(partial, part < partials, other=0.0)
        weights += tl.load(partial + 1, part < partials, other=0.0)
    norm = tl.sqrt(tl.sum(directions, axis=0))
    if tl.program_id(0) == 0:
        tl.store(norms_ptr + tl.program_id(1), tl.sqrt(tl.sum(weights, axis=0)))
    gradient = tl.load(grads_ptr + places, mask, other=0.0).to(tl.float32)
    direction = gradient + momentum * tl.load(velocity_ptr + places, mask, other=0.0)
    _, places, mask = _in_batches(layout_ptr, inside)
    tl.store(x_ptr + places, direction / tl.maximum(norm, 1e-12, propagate_nan=tl.PropagateNan.ALL), mask)


@triton.jit
def _rows_kernel(
    updates_ptr,  # like x
    squares_ptr,  # float32 [rows of all filters]
    means_ptr,  # float32 [rows of all filters], written
    layout_ptr,  # int32 [filters, 6]
    momentum,
    BLOCK: tl.constexpr,
):
    fields = layout_ptr + tl.program_id(1) * 6
    row = tl.program_id(0)
    if row < tl.load(fields + 1):
        columns = tl.load(fields + 2)
        first_update = updates_ptr + tl.load(fields + 3) + row * tl.load(fields + 4)
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(0, columns, BLOCK):
            column = first + tl.arange(0, BLOCK)
            update = tl.load(first_update + column, column < columns, other=0.0).to(tl.float32)
            total += update * update
        mean = tl.sum(total, axis=0) / columns
        place = tl.load(fields + 5) + row
        tl.store(means_ptr + place, mean)
        tl.store(squares_ptr + place, momentum * tl.load(squares_ptr + place) + (1 - momentum) * mean)


@triton.jit
def _inverse(squares):
    """Return 1 / the squares, which are taken as 1e-20 at least."""
    return 1 / tl.maximum(squares, 1e-20, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _row_factors(squares_ptr, means_ptr, fields, row, mask, BLOCK: tl.constexpr):
    """Return the factors of elements in these rows of the filter with these fields."""
    rows, start = tl.load(fields + 1), tl.load(fields + 5)
    before, after = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for first in range(0, rows, BLOCK):
        each = first + tl.arange(0, BLOCK)
        means = tl.load(means_ptr + start + each, each < rows, other=0.0)
        before += means
        after += means * _inverse(tl.load(squares_ptr + start + each, each < rows, other=1.0))
    kept = tl.sum(before, axis=0) / tl.maximum(tl.sum(after, axis=0), 1e-20, propagate_nan=tl.PropagateNan.ALL)
    return tl.sqrt(kept * _inverse(tl.load(squares_ptr + start + row, mask, other=1.0)))


@triton.jit(do_not_specialize=["rates_length", "flags_length", "ema_every"])
def _update_kernel(
    weights_ptr,  # float32 [length]
    updates_ptr,  # like x
    compute_ptr,  # float16 or bfloat16 [length], or None
    ema_ptr,  # float32 [length], or None
    norms_ptr,  # float32 [filters]
    rates_ptr,  # float32 [rates_length]
    normalize_ptr,  # bool [flags_length]
    step_ptr,  # int64 [1]
    layout_ptr,  # int32 [filters, 6]
    rates_length,
    flags_length,
    decay,
    ema_decay,
    ema_every,
    squares_ptr,  # float32 [rows of all filters], or None
    means_ptr,  # like it
    BLOCK: tl.constexpr,
):
    step = tl.load(step_ptr)
    rate = tl.load(rates_ptr + tl.minimum(step, rates_length - 1))
    factor = 1 - rate * decay
    if tl.load(normalize_ptr + tl.minimum(step, flags_length - 1)) != 0:
        rows = tl.load(layout_ptr + tl.program_id(1) * 6 + 1).to(tl.float32)
        norm = tl.load(norms_ptr + tl.program_id(1))
        factor *= tl.sqrt(rows) / tl.maximum(norm, 1e-12, propagate_nan=tl.PropagateNan.ALL)
    inside, places, mask = _elements(layout_ptr, BLOCK)
    row, placed, real = _in_batches(layout_ptr, inside)
    update = tl.load(updates_ptr + placed, real, other=0.0).to(tl.float32)
    if squares_ptr is not None:
        update *= _row_factors(squares_ptr, means_ptr, layout_ptr + tl.program_id(1) * 6, row, real, BLOCK)
    weights = tl.load(weights_ptr + places, mask, other=0.0) * factor - rate * update
    tl.store(weights_ptr + places, weights, mask)
    if compute_ptr is not None:
        tl.store(compute_ptr + places, weights, mask)
    if ema_ptr is not None:  # noqa: SIM102  (decided when the kernel is compiled, the other when it runs)
        if step % ema_every == 0:
            ema = tl.load(ema_ptr + places, mask, other=0.0)
            tl.store(ema_ptr + places, ema + (1 - ema_decay) * (weights - ema), mask)


@functools.cache
def _table(layout: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the kernels' table of the layout on the device, made before a graph that reads it is captured, and kept
    for that graph."""
    table = torch.tensor(layout, dtype=torch.int32).view(-1, FIELDS)
    rows = table[:, 1:2]
    return torch.cat([table, rows.cumsum(0, dtype=torch.int32) - rows], dim=1).to(device)


def _grid(weights: Tensor, layout: Sequence[int]) -> tuple[tuple[int, int], dict[str, int]]:
    """Return the grid, programs of the largest filter by filters, and the kernels' block size and warps."""
    sizes = SIZES.of(weights)
    largest = max(-(-rows * columns // ALIGN) * ALIGN for _, rows, columns, _, _ in filters_of(layout))
    grid = (-(-largest // sizes.block), len(layout) // FIELDS)
    return grid, {"BLOCK": sizes.block, "num_warps": sizes.warps}


def direction_triton(
    weights: Tensor, grads: Tensor, velocity: Tensor, x: Tensor, layout: Sequence[int], momentum: float
) -> Tensor:
    grid, sizes = _grid(weights, layout)
    programs, filters = grid
    table = _table(tuple(layout), weights.device)
    partial, norms = weights.new_empty(filters, programs, 2), weights.new_empty(filters)
    launch(_momentum_kernel, grid, weights, grads, velocity, table, partial, momentum, **sizes)
    launch(_direction_kernel, grid, grads, velocity, table, partial, x, norms, programs, momentum, **sizes)
    return norms


def update_triton(
    weights: Tensor,
    updates: Tensor,
    compute: Tensor | None,
    ema: Tensor | None,
    norms: Tensor,
    rates: Tensor,
    normalize: Tensor,
    step: Tensor,
    layout: Sequence[int],
    decay: float,
    ema_decay: float,
    ema_every: int,
    row_squares: Tensor | None,
    row_momentum: float,
) -> None:
    grid, sizes = _grid(weights, layout)
    table, means = _table(tuple(layout), weights.device), None
    if row_squares is not None:
        means = torch.empty_like(row_squares)
        rows = (max(layout[1::FIELDS]), len(table))
        launch(_rows_kernel, rows, updates, row_squares, means, table, row_momentum, **sizes)
    launch(
        _update_kernel,
        grid,
        *(weights, updates, compute, ema, norms, rates.contiguous(), normalize, step),
        *(table, len(rates), len(normalize), decay, ema_decay, ema_every, row_squares, means),
        **sizes,
    )
