"""Ghost batch norm fused with its neighbors: pooling before it, the activation and a residual sum after it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from fastcifar.kernels import norm_act_pool, norm_act_pool_inference


class GhostBatchNorm(nn.Module):
    """Batch norm over groups of `ghost_batch` consecutive images (Hoffer, Hubara and Soudry 2017), then an activation.

    Input `[N, C, H, W]` channels-last, optionally max-pooled 2x2 first; output `[N, C, H', W']`, plus `residual` if
    given. It differs from Page's on purpose: a group is a run of consecutive images (Page: every 16th image of the
    batch), and the running statistics are means over all groups throughout (Page: averaged once, then those of the
    first group). The running variance is the unbiased one, as in torch.

    channels: C. The other arguments are those of `ConvBN`; `ghost_batch` 0 is the whole batch, plain batch norm.

    Raises ValueError for a batch that `ghost_batch` does not divide.
    """

    wide_vectors: ClassVar[bool] = True

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(
        self,
        channels: int,
        ghost_batch: int = 0,
        *,
        activation: str = "none",
        celu_alpha: float = 1.0,
        pool: bool = False,
        freeze_scale: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.ghost_batch = ghost_batch
        self.activation, self.celu_alpha, self.pool = activation, celu_alpha, pool
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=not freeze_scale)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        act = {"activation": self.activation, "alpha": self.celu_alpha}
        fused = {**act, "pool": self.pool, "eps": self.eps, "residual": residual}
        scale = self.weight if self.weight.requires_grad else None
        if not self.training:
            return norm_act_pool_inference(x, self.running_mean, self.running_var, self.bias, scale, **fused)
        images = x.shape[0]  # len(x) would make it a constant of an exported graph
        groups, rest = (images // self.ghost_batch, images % self.ghost_batch) if self.ghost_batch else (1, 0)
        if rest:
            raise ValueError(f"a batch of {images} images does not divide into ghost batches of {self.ghost_batch}")
        running = (self.running_mean, self.running_var)
        return norm_act_pool(x, self.bias, scale, groups=groups, running=running, momentum=self.momentum, **fused)[0]

    def extra_repr(self) -> str:
        return f"{len(self.bias)}, ghost_batch={self.ghost_batch}, activation={self.activation}, pool={self.pool}"
