"""FIRE: weights become orthogonal before a network is trained on (Han et al. 2026, arXiv 2602.08040)."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastcifar.host import TORCH
from fastcifar.plasticity.layers import trained
from fastcifar.recipes.declare import Declaration, checked

_WITHIN = 1e-3
"""A matrix is orthogonal where the Frobenius norm of W W' - I is at most this."""
_MOST_STEPS = 60
"""Each multiplies small singular values by 1.5: of these, those above 1e-10 of the norm come to 1, and roundoff does
not."""


@TORCH.applied()
@torch.no_grad()
def fire(module: nn.Module, steps: int = 0) -> None:
    """Make the weights of all linear layers and convolutions in `module` that train orthogonal, in place.

    The matrix W `[outputs, inputs]` of a linear layer, and that of each tap `weight[:, :, i, j]` of a convolution,
    becomes its polar factor, the nearest matrix whose singular values are 1, times sqrt(outputs / inputs), and divided
    by the taps of the kernel. The factor is by Newton-Schulz iteration X <- 1.5 X - 0.5 X X' X from W over its
    Frobenius norm, in float64 whatever the dtype of the weights, which they keep (Han et al. 2026, arXiv 2602.08040).

    steps: of the iteration; 0: until every tap of the layer is orthogonal to 1e-3 before it is rounded to the dtype of
        the weights, at most 60; on a CPU by singular vectors, see `polar_factor`. The authors' are 10, which leave
        singular values below about 1% of the norm far from 1.

    Singular values that are 0, as of units that nothing goes into or comes out of, stay 0. Left as they are: biases,
    norms, running statistics, parameters that do not train, and layers of other kinds, such as attention's one matrix
    for queries, keys and values. Of a convolution in groups a tap is taken whole, as the authors' code does.

    Raises UserError for steps that are not 0 to 1000, and for a weight that is computed from other parameters, before
    anything is changed.
    """
    steps = checked("steps", steps, int, Declaration(at_least=0, at_most=1000))
    for weight in trained(module, "weight"):
        if not weight.numel():
            continue
        taps = weight.flatten(2).permute(2, 0, 1) if weight.dim() == 4 else weight[None]
        count, outputs, inputs = taps.shape
        made = polar_factor(taps.double(), steps).mul_(math.sqrt(outputs / inputs) / count)
        weight.copy_(made.permute(1, 2, 0).reshape(weight.shape))


def polar_factor(matrices: torch.Tensor, steps: int = 0) -> torch.Tensor:
    """Return the polar factors of `matrices` `[N, R, C]` by `steps` of Newton-Schulz iteration; 0: as many as make
    all of them orthogonal to 1e-3, rows or columns of zeros aside, at most 60. A matrix of zeros stays one.

    With 0 steps they come from singular vectors on a CPU, which is faster there; singular values that are 0 but for
    rounding stay 0.
    """
    rows, columns = (matrices != 0).any(2), (matrices != 0).any(1)
    tall = bool(rows.sum() > columns.sum())
    x, alive = (matrices.mT, columns) if tall else (matrices, rows)  # whose rows other than 0 are the fewer
    if not steps and x.device.type == "cpu" and x.isfinite().all():
        u, values, v = torch.linalg.svd(x, full_matrices=False)
        least = x.shape[2] * torch.finfo(x.dtype).eps * values[:, :1]
        x = (u * (values > least)[:, None]) @ v
        return torch.where(rows[:, :, None] & columns[:, None], x.mT if tall else x, 0)
    norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x, identity = x / norms.clamp_min(torch.finfo(x.dtype).tiny), torch.diag_embed(alive.to(x.dtype))
    for _ in range(steps or _MOST_STEPS):
        gram = x @ x.mT
        if not steps and torch.linalg.matrix_norm(gram - identity).max() <= _WITHIN:
            break
        x = torch.baddbmm(x, gram, x, beta=1.5, alpha=-0.5)
    return x.mT if tall else x
