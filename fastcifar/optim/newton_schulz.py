"""Newton-Schulz iteration: about the nearest orthogonal matrix, by matrix products alone (Jordan 2024, Muon)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch

from fastcifar.kernels import newton_schulz as iterate

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's: of those that end within about 0.7 to 1.2 the steepest at 0, where small singular values rise fastest."""

_SMALLEST_NORM = 1e-12
"""A matrix of a smaller norm is divided by this, so that zero stays zero and tiny values stay small."""

_LIMIT = (15 / 8, -10 / 8, 3 / 8)
"""What Polar Express's coefficients become as the singular values come near 1."""
_CUSHION = 0.02407327424182761
"""Polynomials are for singular values from this share of the largest on; those for all would raise large ones less."""
_SAFETY = 1.01
"""Singular values that rounding made too large by so much stay bounded."""


def polar_express(steps: int, least: float = 1e-3) -> list[float]:
    """Return a, b and c of each step by Polar Express (Amsel et al. 2025, arXiv 2505.16932): those that bring all
    singular values in `least` to 1 nearest to 1, one step after the other, with their cushion and safety factor.

    Each step's odd polynomial of degree 5 has the least error over the interval that the step before left. It is
    scaled so that the ends of the next interval are as far below and above 1.
    """
    coefficients: list[float] = []
    low, high = least, 1.0
    for _ in range(steps):
        if low >= (1 - 5e-6) * high:
            coefficients += _LIMIT
            continue
        numbers = _nearest_to_1(max(low, _CUSHION * high), high)
        ends = [
            sum(number * end**power for number, power in zip(numbers, (1, 3, 5), strict=True)) for end in (low, high)
        ]
        scale = 2 / sum(ends)
        low, high = scale * ends[0], scale * ends[1]
        coefficients += [scale * number / _SAFETY**power for number, power in zip(numbers, (1, 3, 5), strict=True)]
    return coefficients


def _nearest_to_1(low: float, high: float) -> list[float]:
    """Return a, b and c of the polynomial a s + b s^3 + c s^5 whose largest distance to 1 in `low` to `high` is the
    least, by Remez's exchange: it is reached at both ends and at the two extremes between them, in turn below and
    above."""
    points = [low, (3 * low + high) / 4, (low + 3 * high) / 4, high]
    error = before = 2.0
    numbers: list[float] = []
    for _ in range(100):
        rows = [[s, s**3, s**5, sign] for s, sign in zip(points, (1, -1, 1, -1), strict=True)]
        exact = {"dtype": torch.float64, "device": "cpu"}
        *numbers, error = torch.linalg.solve(torch.tensor(rows, **exact), torch.ones(4, **exact)).tolist()
        a, b, c = numbers
        if abs(error - before) <= 1e-15 or 9 * b * b < 20 * a * c:  # of a short interval rounding takes the extremes
            break
        root = math.sqrt(9 * b * b - 20 * a * c)
        points[1:3] = (math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
        before = error
    return numbers


def newton_schulz(
    matrices: torch.Tensor,
    steps: int = 5,
    coefficients: Sequence[float] = COEFFICIENTS,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return `matrices` `[..., R, C]` with singular values near 1 and the same singular vectors.

    matrices: each is divided by its Frobenius norm, which puts every singular value s in 0 to 1. The norm is taken in
        float32 or wider: the result does not depend on the scale, down to a norm of 1e-12, and fades to zero below.
    steps: times that s <- a s + b s^3 + c s^5 is applied.
    coefficients: a, b and c of all steps, or of each, one after the other: see `polar_express`.
    dtype: of the iteration and the result; by default that of `matrices`.

    The iteration is in Gram form (`kernels.newton_schulz`), on the transposed matrices where these are wider.
    """
    wide = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    norms = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True).clamp_min(_SMALLEST_NORM)
    x = (wide / norms).to(dtype or matrices.dtype)
    if not steps or not x.numel():
        return x
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).contiguous()
    rows, columns = x.shape[-2:]
    shape = (x.numel() // (rows * columns), rows, columns)
    out = torch.empty_like(x)
    kind = x.device.type
    # Its products are in the dtype that is asked for.
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext():
        iterate(x.view(-1), out.view(-1), shape, steps=steps, coefficients=coefficients)
    return out.mT if tall else out


def orthogonalize(
    matrices: Sequence[torch.Tensor],
    steps: int = 5,
    coefficients: Sequence[float] = COEFFICIENTS,
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """Return `newton_schulz` of each matrix `[R, C]`, in their order, computed in one batch for each shape, dtype and
    device."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, matrix in enumerate(matrices):
        alike.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(place)
    results = list(matrices)
    for places in alike.values():
        batch = torch.stack([matrices[place] for place in places])
        for place, result in zip(places, newton_schulz(batch, steps, coefficients, dtype), strict=True):
            results[place] = result
    return results
