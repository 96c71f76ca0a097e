"""Newton-Schulz iteration: the nearest orthogonal matrix, nearly, by matrix products alone (Jordan 2024, Muon)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's: the steepest at 0 (small singular values rise fastest) of those that end within about 0.7 to 1.2."""

_SMALLEST_NORM = 1e-12
"""A matrix of a smaller norm is divided by this, so that zero stays zero and what is all but zero stays small."""


def newton_schulz(
    matrices: torch.Tensor,
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """`matrices` [..., R, C] with their singular values brought near 1, their singular vectors kept, in `dtype`
    (unless given, their own).

    Each is divided by its Frobenius norm, which puts every singular value s in 0 to 1; then each of `steps` makes
    s <- a s + b s^3 + c s^5, `coefficients` being a, b and c. The norm is taken in float32 or wider, so that the result
    does not depend on the scale of `matrices` down to a norm of 1e-12. Below that it fades to zero.

    The products are of the smaller side: 4 min(R, C)^2 (max(R, C) + min(R, C) / 2) operations a step and matrix.
    """
    wide = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    norms = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True).clamp_min(_SMALLEST_NORM)
    x = (wide / norms).to(dtype or matrices.dtype)
    x = x.flatten(0, -3) if x.dim() > 2 else x.unsqueeze(0)
    return (iterate(x, steps, coefficients) if steps else x).reshape(matrices.shape)


def iterate(
    x: torch.Tensor,
    steps: int,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The iteration alone, 1 or more steps, on a batch of matrices [B, R, C] whose norms are 1 at most; into `out`,
    where it is given."""
    a, b, c = coefficients
    tall = x.shape[1] > x.shape[2]
    if tall:
        x, out = x.mT, None if out is None else out.mT
    for left in reversed(range(steps)):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a, out=None if left else out)
    return x.mT if tall else x


def orthogonalize(
    matrices: Sequence[torch.Tensor],
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """`newton_schulz` of matrices [R, C] of several shapes, those of equal shape in one batch; in their order."""
    by_shape: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(place)
    results: list[torch.Tensor] = [None] * len(matrices)
    for places in by_shape.values():
        batch = torch.stack([matrices[place] for place in places])
        for place, result in zip(places, newton_schulz(batch, steps, coefficients, dtype), strict=True):
            results[place] = result
    return results
