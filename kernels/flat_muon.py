"""Muon's two passes over flat buffers, before and after Newton-Schulz: momentum and layout, then the update.

Newton-Schulz takes filters in batches of matrices, each of norm 1, in the compute dtype. `muon_direction` makes them,
in two launches: the momentum and the norms' partial sums, then the scaled directions, every filter at its place in the
batches. `muon_update` takes the result apart again, in one. Plain torch does the same with a dozen small operations a
filter, each a launch: in a step of a millisecond those, not bytes, are what counts.

Roofline. P weights in filters, half-precision gradients and compute copy: the direction reads weights 4P once,
gradients 2P and velocity 4P twice, and writes velocity 4P and x 2P: 22P bytes; the update reads weights 4P and updates
2P and writes weights 4P and compute 2P: 12P bytes; with the average 8P more, every `ema_every`-th step. The speedrun
network, P 1.97 million: 43 and 24 MB, 10 and 6 microseconds at 4.3 TB/s. 15 operations a weight, below 0.1 microseconds
at 790 TFLOP/s. The bytes bind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastcifar.kernels.flat_optimizer import check_buffers, flat_ema_reference
from fastcifar.kernels.launch import kernel, launch, use_triton
from fastcifar.kernels.launch_sizes import launch_sizes
from fastcifar.kernels.operators import operator

if TYPE_CHECKING:
    import triton.language as tl  # given to this module when Triton is loaded

FIELDS = 5
"""Numbers of a filter in a layout: start in the flat buffers, rows, columns; start in x, and from row to row there."""

_SMALLEST_NORM = 1e-12
_ALIGN = 32
"""Filters start at multiples of so many elements, the gaps between them being zero in every buffer."""


def _filters(layout: Sequence[int]) -> Iterator[Sequence[int]]:
    return (layout[place : place + FIELDS] for place in range(0, len(layout), FIELDS))


# ---------------------------------------------------------------------------------------------------------- reference


def muon_direction_reference(
    weights: Tensor, grads: Tensor, velocity: Tensor, x: Tensor, layout: Sequence[int], momentum: float
) -> Tensor:
    """The specification of `muon_direction`, in plain torch."""
    norms = []
    for start, rows, columns, place, stride in _filters(layout):
        span = slice(start, start + rows * columns)
        gradient = grads[span].to(weights.dtype)
        direction = velocity[span].mul_(momentum).add_(gradient).mul(momentum).add_(gradient)
        direction /= torch.linalg.vector_norm(direction).clamp_min(_SMALLEST_NORM)
        x[place : place + rows * stride].view(rows, stride)[:, :columns] = direction.view(rows, columns)
        norms.append(torch.linalg.vector_norm(weights[span]))
    return torch.stack(norms)


def muon_update_reference(
    weights: Tensor,
    updates: Tensor,
    compute: Tensor | None,
    ema: Tensor | None,
    norms: Tensor,
    rates: Tensor,
    normalise: Tensor,
    step: Tensor,
    layout: Sequence[int],
    decay: float,
    ema_decay: float,
    ema_every: int,
) -> None:
    """The specification of `muon_update`, in plain torch."""
    rate = rates[step.clamp(max=len(rates) - 1)]
    normalised = normalise[step.clamp(max=len(normalise) - 1)]
    for number, (start, rows, columns, place, stride) in enumerate(_filters(layout)):
        span = slice(start, start + rows * columns)
        factor = rows**0.5 / norms[number].clamp_min(_SMALLEST_NORM)
        factor = torch.where(normalised, factor, torch.ones_like(factor)) * (1 - rate * decay)
        update = updates[place : place + rows * stride].view(rows, stride)[:, :columns]
        weights[span].mul_(factor).view(rows, columns).sub_(update * rate)
        if compute is not None:
            compute[span].copy_(weights[span])
        if ema is not None:
            flat_ema_reference(weights[span], ema[span], step, ema_decay=ema_decay, ema_every=ema_every)


# ------------------------------------------------------------------------------------------------------------- Triton
# A program works on BLOCK elements of one filter, the gap behind it counted in: so all but x is accessed in whole
# vectors.


@kernel()
def _elements(layout_ptr, BLOCK: tl.constexpr):
    """Of a program's elements: their places in the filter, and in the flat buffers with the mask of those."""
    fields = layout_ptr + tl.program_id(1) * 5
    start = tl.multiple_of(tl.load(fields), 32)
    size = tl.multiple_of(tl.cdiv(tl.load(fields + 1) * tl.load(fields + 2), 32) * 32, 32)
    inside = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return inside, start + inside, inside < size


@kernel()
def _in_batches(layout_ptr, inside):
    """Where elements of a filter lie in x, and which of them do: not those of the gap."""
    fields = layout_ptr + tl.program_id(1) * 5
    rows, columns = tl.load(fields + 1), tl.load(fields + 2)
    row = inside // columns
    return tl.load(fields + 3) + row * tl.load(fields + 4) + (inside - row * columns), inside < rows * columns


@kernel()
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


@kernel(do_not_specialize=["partials"])
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


@kernel(do_not_specialize=["rates_length", "flags_length", "ema_every"])
def _update_kernel(
    weights_ptr,  # float32 [length]
    updates_ptr,  # like x
    compute_ptr,  # float16 or bfloat16 [length], or None
    ema_ptr,  # float32 [length], or None
    norms_ptr,  # float32 [filters]
    rates_ptr,  # float32 [rates_length]
    normalise_ptr,  # bool [flags_length]
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
    if tl.load(normalise_ptr + tl.minimum(step, flags_length - 1)) != 0:
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
    """The layout on the device: made before a graph that reads it is captured, and kept as long as that may be."""
    return torch.tensor(layout, dtype=torch.int32).view(-1, FIELDS).to(device)


def _grid(weights: Tensor, layout: Sequence[int]) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs of the largest filter by filters, and what the kernels are compiled for."""
    sizes, _ = launch_sizes(weights)
    largest = max(-(-rows * columns // _ALIGN) * _ALIGN for _, rows, columns, _, _ in _filters(layout))
    grid = (-(-largest // sizes.muon_block), len(layout) // FIELDS)
    return grid, {"BLOCK": sizes.muon_block, "num_warps": sizes.muon_warps}


def _direction_triton(
    weights: Tensor, grads: Tensor, velocity: Tensor, x: Tensor, layout: Sequence[int], momentum: float
) -> Tensor:
    grid, sizes = _grid(weights, layout)
    programs, filters = grid
    table = _table(tuple(layout), weights.device)
    partial, norms = weights.new_empty(filters, programs, 2), weights.new_empty(filters)
    launch(_momentum_kernel, grid, weights, grads, velocity, table, partial, momentum, **sizes)
    launch(
        _direction_kernel,
        grid,
        *(grads, velocity, table, partial, x, norms, programs, momentum),
        **sizes,
    )
    return norms


# ----------------------------------------------------------------------------------------------------------- operator


def _direction(weights, grads, velocity, x, layout, momentum):
    path = _direction_triton if use_triton(weights) else muon_direction_reference
    return path(weights, grads, velocity, x, layout, momentum)


def _update(weights, updates, compute, ema, norms, rates, normalise, step, layout, decay, ema_decay, ema_every):
    if not use_triton(weights):
        muon_update_reference(
            *(weights, updates, compute, ema, norms, rates, normalise, step, layout, decay, ema_decay, ema_every)
        )
        return
    grid, sizes = _grid(weights, layout)
    launch(
        _update_kernel,
        grid,
        *(weights, updates, compute, ema, norms, rates.contiguous(), normalise, step),
        *(_table(tuple(layout), weights.device), len(rates), len(normalise), decay, ema_decay, ema_every),
        **sizes,
    )


operator(
    "muon_direction(Tensor weights, Tensor grads, Tensor(a!) velocity, Tensor(b!) x, int[] layout, float momentum) "
    "-> Tensor",
    _direction,
    lambda weights, grads, velocity, x, layout, momentum: weights.new_empty(len(layout) // FIELDS),
)
operator(
    "muon_update(Tensor(a!) weights, Tensor updates, Tensor(b!)? compute, Tensor(c!)? ema, Tensor norms, Tensor rates, "
    "Tensor normalise, Tensor step, int[] layout, float decay, float ema_decay, int ema_every) -> ()",
    _update,
    lambda *_: None,
)


def _check(layout: Sequence[int], length: int, batches: int, **buffers: Tensor | None) -> None:
    check_buffers(length, **buffers)
    if not layout or len(layout) % FIELDS:
        raise ValueError(f"the layout has {len(layout)} numbers; allowed: {FIELDS} for each filter")
    for start, rows, columns, place, stride in _filters(layout):
        fits = start % _ALIGN == 0 and -(-(start + rows * columns) // _ALIGN) * _ALIGN <= length
        if not (fits and columns <= stride and place + rows * stride <= batches):
            raise ValueError(
                f"a filter [{rows}, {columns}] at {start}, in x at {place} by rows of {stride}, does not fit buffers "
                f"of {length} and {batches}; allowed: inside both, at a multiple of {_ALIGN}"
            )


def muon_direction(
    weights: Tensor, grads: Tensor, velocity: Tensor, x: Tensor, layout: Sequence[int], *, momentum: float
) -> Tensor:
    """Muon's momentum and the matrices for Newton-Schulz, over flat buffers; returns the norms of the filters, float32
    [F], before any of them changes (Jordan 2024, airbench94_muon).

    weights, velocity: float32 [P]; grads: [P] in any floating dtype; x: flat, in the dtype of the iteration. `layout`
    has five numbers for each filter, a matrix [R, C] of weights: its start in the flat buffers, a multiple of 32, R, C,
    and its start in x with the elements from row to row there. What lies between filters is zero in every buffer and
    stays so; of x only the filters are written.

    `v = momentum * v + g`, and into x `(g + momentum * v)` divided by its norm (1e-12 at least).
    Raises ValueError for buffers of other shapes and filters outside them.
    """
    _check(layout, len(weights), len(x), weights=weights, grads=grads, velocity=velocity)
    return torch.ops.fastcifar.muon_direction(weights, grads, velocity, x, layout, momentum)


def muon_update(
    weights: Tensor,
    updates: Tensor,
    compute: Tensor | None,
    ema: Tensor | None,
    norms: Tensor,
    rates: Tensor,
    normalise: Tensor,
    step: Tensor,
    layout: Sequence[int],
    *,
    decay: float = 0.0,
    ema_decay: float = 0.0,
    ema_every: int = 1,
) -> None:
    """One update of all filters from `updates` [X], which lie as in the x of `muon_direction`, whose `norms`, float32
    [F], it gave.

    `lr = rates[step]`; where `normalise[step]`, `w = w * sqrt(R) / norm`; then `w = w * (1 - lr * decay) - lr * u`,
    `compute = w`, and where `step % ema_every == 0`, `ema = ema_decay * ema + (1 - ema_decay) * w`. rates: float32 [S];
    normalise: bool [S]; step: int64 [1]; all on the device, the last of each holding past its end, as in `flat_sgd`;
    compute and ema may be None.
    Raises ValueError for buffers of other shapes and filters outside them.
    """
    _check(layout, len(weights), len(updates), weights=weights, compute=compute, ema=ema)
    filters = len(layout) // FIELDS
    if norms.shape != (filters,):
        raise ValueError(f"norms has shape {list(norms.shape)}; allowed: [{filters}], one for each filter")
    torch.ops.fastcifar.muon_update(
        *(weights, updates, compute, ema, norms, rates, normalise, step, layout, decay, ema_decay, ema_every)
    )
