"""Newton-Schulz iteration: about the nearest orthogonal matrix, by matrix products alone (Jordan 2024, Muon)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from fastcifar.kernels import newton_schulz as iterate

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's: of those that end within about 0.7 to 1.2 the steepest at 0, where small singular values rise fastest."""

_SMALLEST_NORM = 1e-12
"""A matrix of a smaller norm is divided by this, so that zero stays zero and tiny values stay small."""


def newton_schulz(
    matrices: torch.Tensor,
    steps: int = 5,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return `matrices` `[..., R, C]` with singular values near 1 and the same singular vectors.

    matrices: each is divided by its Frobenius norm, which puts every singular value s in 0 to 1. The norm is taken in
        float32 or wider: the result does not depend on the scale, down to a norm of 1e-12, and fades to zero below.
    steps: times that s <- a s + b s^3 + c s^5 is applied.
    coefficients: a, b and c.
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
    coefficients: tuple[float, float, float] = COEFFICIENTS,
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
