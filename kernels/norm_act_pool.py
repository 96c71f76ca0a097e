"""Optional 2x2 max-pool, ghost batch norm, activation and residual."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def _activate(values: Tensor, activation: str, alpha: float) -> Tensor:
    if activation == "celu":
        return functional.celu(values, alpha)
    if activation == "relu":
        return functional.relu(values)
    if activation == "gelu":
        return functional.gelu(values)
    if activation == "silu":
        return functional.silu(values)
    if activation == "none":
        return values
    raise ValueError(f"activation is {activation!r}; allowed: celu, relu, gelu, silu, none")


def norm_act_pool_reference(
    x: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    *,
    groups: int = 1,
    activation: str = "celu",
    alpha: float = 0.3,
    pool: bool = False,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of `norm_act_pool`."""
    if groups < 1 or len(x) % groups:
        raise ValueError(f"groups is {groups}; allowed: a divisor of the batch of {len(x)}")
    if pool:
        x = functional.max_pool2d(x, 2)
    wide = x if x.dtype == torch.float64 else x.float()
    grouped = wide.unflatten(0, (groups, -1))
    var, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0, keepdim=True)
    values = (grouped - mean) * torch.rsqrt(var + eps)
    values = values if scale is None else values * scale[:, None, None]
    values = _activate(values + bias[:, None, None], activation, alpha).flatten(0, 1).to(x.dtype)
    out = values if residual is None else values + residual
    return out, mean.detach()[:, 0, :, 0, 0], var.detach()[:, 0, :, 0, 0]


def norm_act_pool(
    x: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    *,
    groups: int = 1,
    activation: str = "celu",
    alpha: float = 0.3,
    pool: bool = False,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`(out, mean [groups, C] float32, biased var [groups, C] float32)`; mean and var carry no gradient."""
    return norm_act_pool_reference(
        x, bias, scale, groups=groups, activation=activation, alpha=alpha, pool=pool, eps=eps, residual=residual
    )


def norm_act_pool_inference(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    *,
    activation: str = "celu",
    alpha: float = 0.3,
    pool: bool = False,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor:
    """`norm_act_pool` with given statistics `[C]`; no gradient."""
    with torch.no_grad():
        if pool:
            x = functional.max_pool2d(x, 2)
        factor = torch.rsqrt(var + eps) if scale is None else torch.rsqrt(var + eps) * scale
        values = (x.float() - mean[:, None, None]) * factor[:, None, None] + bias[:, None, None]
        values = _activate(values, activation, alpha).to(x.dtype)
        return values if residual is None else values + residual
