"""Muon's two passes over flat buffers, before and after Newton-Schulz: momentum and layout, then the update.

Newton-Schulz takes filters in batches of matrices, each of norm 1, in the compute dtype. `muon_direction` makes them,
in two launches: the momentum and the norms' partial sums, then the scaled directions, every filter at its place in the
batches. `muon_update` takes the result apart again, in one, in two where it evens out rows. Plain torch does the same
with a dozen small operations a filter, each a launch: in a step of a millisecond those, not bytes, are what counts.

Roofline. P weights in filters, half-precision gradients and compute copy: the direction reads weights 4P once,
gradients 2P and velocity 4P twice, and writes velocity 4P and x 2P: 22P bytes; the update reads weights 4P and updates
2P and writes weights 4P and compute 2P: 12P bytes; with the average 8P more, every `ema_every`-th step, and 2P more
for the rows' mean squares. SpeedrunNet, P 1.97 million: 43 and 24 MB, 10 and 6 microseconds at 4.3 TB/s. 15 operations
a weight, below 0.1 microseconds at 790 TFLOP/s. The bytes bind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastcifar.kernels.flat_optimizer import check_buffers, flat_ema_reference
from fastcifar.kernels.launch import use_triton
from fastcifar.kernels.operators import operator

FIELDS = 5
"""Numbers of a filter in a layout: start in the flat buffers, rows, columns; start in x, and from row to row there."""

_SMALLEST_NORM = 1e-12
_SMALLEST_SQUARE = 1e-20
ALIGN = 32
"""Filters start at multiples of so many elements, the gaps between them being zero in every buffer."""


def filters_of(layout: Sequence[int]) -> Iterator[Sequence[int]]:
    """Return the `FIELDS` of each filter of `layout`."""
    return (layout[place : place + FIELDS] for place in range(0, len(layout), FIELDS))


# ---------------------------------------------------------------------------------------------------------- reference


def muon_direction_reference(
    weights: Tensor, grads: Tensor, velocity: Tensor, x: Tensor, layout: Sequence[int], momentum: float
) -> Tensor:
    """Compute `muon_direction` in plain torch: its specification."""
    norms = []
    for start, rows, columns, place, stride in filters_of(layout):
        span = slice(start, start + rows * columns)
        gradient = grads[span].to(weights.dtype)
        direction = velocity[span].mul_(momentum).add_(gradient).mul(momentum).add_(gradient)
        direction /= torch.linalg.vector_norm(direction).clamp_min(_SMALLEST_NORM)
        x[place : place + rows * stride].view(rows, stride)[:, :columns] = direction.view(rows, columns)
        norms.append(torch.linalg.vector_norm(weights[span]))
    return torch.stack(norms)


def row_factors(update: Tensor, squares: Tensor, momentum: float) -> Tensor:
    """Move `squares` `[R]`, the running mean squares of rows, by those of `update` `[R, C]`, and return the factors of
    its rows, `[R, 1]` (NorMuon, Li et al. 2025): see `muon_update`."""
    means = update.to(torch.promote_types(update.dtype, torch.float32)).square().mean(1)
    squares.mul_(momentum).add_(means * (1 - momentum))
    inverse = squares.to(means.dtype).clamp_min(_SMALLEST_SQUARE).reciprocal()
    kept = means.sum() / (means * inverse).sum().clamp_min(_SMALLEST_SQUARE)
    return (kept * inverse).sqrt()[:, None]


def muon_update_reference(
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
    """Compute `muon_update` in plain torch: its specification."""
    row = 0
    rate = rates[step.clamp(max=len(rates) - 1)]
    normalized = normalize[step.clamp(max=len(normalize) - 1)]
    for number, (start, rows, columns, place, stride) in enumerate(filters_of(layout)):
        span = slice(start, start + rows * columns)
        factor = rows**0.5 / norms[number].clamp_min(_SMALLEST_NORM)
        factor = torch.where(normalized, factor, torch.ones_like(factor)) * (1 - rate * decay)
        update = updates[place : place + rows * stride].view(rows, stride)[:, :columns]
        if row_squares is not None:
            update = update * row_factors(update, row_squares[row : row + rows], row_momentum)
            row += rows
        weights[span].mul_(factor).view(rows, columns).sub_(update * rate)
        if compute is not None:
            compute[span].copy_(weights[span])
        if ema is not None:
            flat_ema_reference(weights[span], ema[span], step, ema_decay=ema_decay, ema_every=ema_every)


# ----------------------------------------------------------------------------------------------------------- operator


def _direction(weights, *rest):
    if use_triton(weights):
        from fastcifar.kernels.flat_muon_triton import direction_triton

        return direction_triton(weights, *rest)
    return muon_direction_reference(weights, *rest)


def _update(weights, *rest):
    if use_triton(weights):
        from fastcifar.kernels.flat_muon_triton import update_triton

        return update_triton(weights, *rest)
    return muon_update_reference(weights, *rest)


operator(
    "muon_direction",
    _direction,
    lambda weights, grads, velocity, x, layout, momentum: weights.new_empty(len(layout) // FIELDS),
    signature=muon_direction_reference,
    mutates=("velocity", "x"),
)
operator(
    "muon_update",
    _update,
    lambda *_: None,
    signature=muon_update_reference,
    mutates=("weights", "compute", "ema", "row_squares"),
)


def _check(layout: Sequence[int], length: int, batches: int, **buffers: Tensor | None) -> None:
    check_buffers(length, **buffers)
    if not layout or len(layout) % FIELDS:
        raise ValueError(f"the layout has {len(layout)} numbers; allowed: {FIELDS} for each filter")
    for start, rows, columns, place, stride in filters_of(layout):
        fits = start % ALIGN == 0 and -(-(start + rows * columns) // ALIGN) * ALIGN <= length
        if not (fits and columns <= stride and place + rows * stride <= batches):
            raise ValueError(
                f"a filter [{rows}, {columns}] at {start}, in x at {place} by rows of {stride}, does not fit buffers "
                f"of {length} and {batches}; allowed: inside both, at a multiple of {ALIGN}"
            )


def muon_direction(
    weights: Tensor, grads: Tensor, velocity: Tensor, x: Tensor, layout: Sequence[int], *, momentum: float
) -> Tensor:
    """Move Muon's momentum and write the matrices for Newton-Schulz, over flat buffers (Jordan 2024, airbench94_muon).
    Return the norms of the filters, float32 [F], before any of them changes.

    weights, velocity: float32 [P].
    grads: [P] in any floating dtype.
    x: flat, in the dtype of the iteration.
    layout: five numbers for each filter, a matrix [R, C] of weights: its start in the flat buffers, a multiple of 32,
        R, C, its start in x and the elements from row to row there. Gaps between filters are zero in every buffer and
        stay so; only the filters are written in x.

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
    normalize: Tensor,
    step: Tensor,
    layout: Sequence[int],
    *,
    decay: float = 0.0,
    ema_decay: float = 0.0,
    ema_every: int = 1,
    row_squares: Tensor | None = None,
    row_momentum: float = 0.0,
) -> None:
    """Update all filters once.

    `lr = rates[step]`; if `normalize[step]`, `w = w * sqrt(R) / norm`; then `w = w * (1 - lr * decay) - lr * u`,
    `compute = w`, and if `step % ema_every == 0`, `ema = ema_decay * ema + (1 - ema_decay) * w`.

    With `row_squares` v, u is first evened out by rows (NorMuon, Li et al. 2025). With the mean square s of each row,
    `v = m v + (1 - m) s` and `u = u / sqrt(v)`, then u is scaled to the norm that it had: a bias of v does not matter.

    updates: u, [X], laid out like the x of `muon_direction`.
    compute, ema: as in `flat_sgd`; each may be None.
    norms: float32 [F], what `muon_direction` returned.
    rates, normalize: float32 [S] and bool [S] on the device; past the end the last one holds.
    step: int64 [1] on the device; not incremented here.
    weights, layout: as in `muon_direction`.
    row_squares: v, float32 [all filters' rows]; None: rows stay as they are.
    row_momentum: m.

    Raises ValueError for buffers of other shapes and filters outside them.
    """
    _check(layout, len(weights), len(updates), weights=weights, compute=compute, ema=ema)
    filters = len(layout) // FIELDS
    if norms.shape != (filters,):
        raise ValueError(f"norms has shape {list(norms.shape)}; allowed: [{filters}], one for each filter")
    rows = sum(layout[1::FIELDS])
    if row_squares is not None and row_squares.shape != (rows,):
        raise ValueError(f"row_squares has shape {list(row_squares.shape)}; allowed: [{rows}], one for each row")
    torch.ops.fastcifar.muon_update(
        *(weights, updates, compute, ema, norms, rates, normalize, step, layout, decay, ema_decay, ema_every),
        *(row_squares, row_momentum),
    )
