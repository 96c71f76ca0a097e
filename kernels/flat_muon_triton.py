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


# A program works on BLOCK elements of one filter, the gap behind it counted in: so all but x is accessed in whole
# vectors.


@triton.jit
def _elements(layout_ptr, BLOCK: tl.constexpr):
    """Return the places of a program's elements in the filter and in the flat buffers, and the mask of the latter."""
    fields = layout_ptr + tl.program_id(1) * 5
    start = tl.multiple_of(tl.load(fields), 32)
    size = tl.multiple_of(tl.cdiv(tl.load(fields + 1) * tl.load(fields + 2), 32) * 32, 32)
    inside = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return inside, start + inside, inside < size


@triton.jit
def _in_batches(layout_ptr, inside):
    """Return the places in x of a filter's elements, and their mask: those of the gap have none."""
    fields = layout_ptr + tl.program_id(1) * 5
    rows, columns = tl.load(fields + 1), tl.load(fields + 2)
    row = inside // columns
    return tl.load(fields + 3) + row * tl.load(fields + 4) + (inside - row * columns), inside < rows * columns


@triton.jit
def _momentum_kernel(
    weights_ptr,  # float32 [length]
    grads_ptr,  # float32, float16 or bfloat16 [length]
    velocity_ptr,  # float32 [length]
    layout_ptr,  # int32 [filters, 5]
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
    layout_ptr,  # int32 [filters, 5]
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
    places, mask = _in_batches(layout_ptr, inside)
    tl.store(x_ptr + places, direction / tl.maximum(norm, 1e-12, propagate_nan=tl.PropagateNan.ALL), mask)


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
    layout_ptr,  # int32 [filters, 5]
    rates_length,
    flags_length,
    decay,
    ema_decay,
    ema_every,
    BLOCK: tl.constexpr,
):
    step = tl.load(step_ptr)
    rate = tl.load(rates_ptr + tl.minimum(step, rates_length - 1))
    factor = 1 - rate * decay
    if tl.load(normalize_ptr + tl.minimum(step, flags_length - 1)) != 0:
        rows = tl.load(layout_ptr + tl.program_id(1) * 5 + 1).to(tl.float32)
        norm = tl.load(norms_ptr + tl.program_id(1))
        factor *= tl.sqrt(rows) / tl.maximum(norm, 1e-12, propagate_nan=tl.PropagateNan.ALL)
    inside, places, mask = _elements(layout_ptr, BLOCK)
    placed, real = _in_batches(layout_ptr, inside)
    update = tl.load(updates_ptr + placed, real, other=0.0).to(tl.float32)
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
    """Return the layout on the device, made before a graph that reads it is captured, and kept for that graph."""
    return torch.tensor(layout, dtype=torch.int32).view(-1, FIELDS).to(device)


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
) -> None:
    grid, sizes = _grid(weights, layout)
    launch(
        _update_kernel,
        grid,
        *(weights, updates, compute, ema, norms, rates.contiguous(), normalize, step),
        *(_table(tuple(layout), weights.device), len(rates), len(normalize), decay, ema_decay, ema_every),
        **sizes,
    )
