"""The specification of `norm_act_pool`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def _activate(values: Tensor, activation: str, alpha: float, residual: Tensor | None) -> Tensor:
    if activation == "sum_relu":
        return functional.relu(values if residual is None else values + residual)
    if activation == "celu":
        values = functional.celu(values, alpha)
    elif activation != "none":
        values = getattr(functional, activation)(values)
    return values if residual is None else values + residual


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
    running: tuple[Tensor, Tensor] | None = None,
    momentum: float = 0.1,
    border: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `norm_act_pool` in plain torch with torch's own gradient: its specification.

    On a CPU native.py runs in its place: the same function, several times as fast.
    """
    x = functional.max_pool2d(x, 2) if pool else x
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (groups, -1))
    var, mean = torch.var_mean(grouped, dim=(1, 3, 4), correction=0, keepdim=True)
    values = (grouped - mean) * torch.rsqrt(var + eps)
    values = values if scale is None else values * scale[:, None, None]
    out = _activate((values + bias[:, None, None]).flatten(0, 1), activation, alpha, residual)
    mean, var = (statistic.detach()[:, 0, :, 0, 0] for statistic in (mean, var))
    if running is not None:
        running[0].lerp_(mean.mean(0), momentum)
        running[1].lerp_(var.mean(0) * unbiased(x.numel() // mean.numel()), momentum)
    return with_border(out.to(x.dtype), border), mean, var


def norm_act_pool_inference_reference(
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
    """Compute `norm_act_pool_inference` in plain torch, with torch's own gradients, of any order."""
    x = functional.max_pool2d(x, 2) if pool else x
    scale = torch.ones_like(bias) if scale is None else scale
    out = functional.batch_norm(x, mean, var, scale, bias, eps=eps)
    return with_border(_activate(out, activation, alpha, residual), border)


def with_border(images: Tensor, border: bool) -> Tensor:
    """Return images `[N, C, H, W]` with a row of zeros above and a column of zeros to the left if `border`."""
    return functional.pad(images, (1, 0, 1, 0)) if border else images


def unbiased(count: int) -> float:
    """Return the factor that makes a biased variance of `count` values unbiased, as torch's batch norm keeps it."""
    return count / max(count - 1, 1)
