"""Layer norm with its neighbors: pooling before it, the activation and a residual sum after it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F


class LayerNorm(nn.GroupNorm):
    """Layer norm (Ba, Kiros and Hinton 2016), then an activation: the substitute for `GhostBatchNorm` that does the
    same in training and evaluation, whatever the batch.

    Input `[N, C, H, W]`, optionally max-pooled 2x2 first, or `[N, C]`; output of its shape, plus `residual` if given.
    Each image's values, over channels and pixels, get mean 0 and variance 1, and then a scale and a bias by channel:
    group norm (Wu and He 2018) of one group.

    channels: C.
    activation: a function of `torch.nn.functional`, or "none".
    alpha: CELU's alpha, or LeakyReLU's slope.
    pool: halve H and W.
    freeze_scale: keep the scale at 1 and train only the bias.
    """

    wide_vectors: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        *,
        activation: str = "none",
        alpha: float = 1.0,
        pool: bool = False,
        freeze_scale: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(1, channels, eps)
        self.activation, self.alpha, self.pool = activation, alpha, pool
        self.weight.requires_grad_(not freeze_scale)

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        x = F.max_pool2d(input, 2) if self.pool else input
        x = x.movedim(1, -1)  # as channels-last images lie in memory: torch's group norm would copy them
        scale, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        x = F.layer_norm(x, x.shape[1:], eps=self.eps)
        x = (x * scale + bias if self.weight.requires_grad else x + bias).movedim(-1, 1)
        if self.activation in ("celu", "leaky_relu"):
            x = getattr(F, self.activation)(x, self.alpha)
        elif self.activation != "none":
            x = getattr(F, self.activation)(x)
        return x if residual is None else x + residual

    def extra_repr(self) -> str:
        return f"{self.num_channels}, activation={self.activation}, pool={self.pool}"
