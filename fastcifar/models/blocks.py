"""The blocks of `DavidNet` (Page, How to train your ResNet, 2018-2019), for networks of your own. DavidNet is

    nn.Sequential(
        PatchWhitening(),
        ConvBN(27, 64, kernel_size=1),
        ConvResBlock(64, 128),
        ConvBN(128, 256, pool=True),
        ConvResBlock(256, 512),
        GlobalMaxPool(),
        Head(512, 10, scale=1 / 16),
    )

with ghost batches of 32 in all blocks. Channels-last images and weights are faster on a GPU.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.errors import UserError
from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.layernorm import LayerNorm
from fastcifar.models.whitening import PatchWhitening

Activation = Literal["celu", "relu", "gelu", "silu", "none"]
Pooling = Literal["max", "avg"]
PoolAfter = Literal["convolution", "norm", "activation"]
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "none": lambda x: x}
POOLS = {"max": F.max_pool2d, "avg": F.avg_pool2d}


class ConvBN(nn.Module):
    """Convolution, optional 2x2 pool, ghost batch norm, activation: `[N, inputs, H, W]` to `[N, outputs, H', W']`.

    pool: halve H and W.
    kernel_size: 3, with padding 1, or 1.
    pooling: the largest or the mean value of each 2x2 pixels.
    pool_after: what the pool follows.
    norm: "layer" puts layer norm, False a trained bias in place of batch norm.
    ghost_batch: consecutive images that batch norm groups (DavidNet: 32); 0: the whole batch, plain batch norm.
    freeze_scale: keep the norm's scales at 1 and train only its biases.
    momentum: share of a step's statistics in the running ones.
    eps: added to the variance.
    activation, celu_alpha: the nonlinearity, and CELU's alpha (Barron 2017).

    Raises UserError for another `kernel_size`, `pooling`, `pool_after`, `norm` or `activation`.
    """

    late: tuple[Pooling, Activation, float] | None = None
    """Pool, then activation, after the norm; absent in older pickles."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        pool: bool = False,
        *,
        kernel_size: Literal[1, 3] = 3,
        pooling: Pooling = "max",
        pool_after: PoolAfter = "convolution",
        norm: bool | Literal["batch", "layer"] = True,
        ghost_batch: int = 0,
        freeze_scale: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        activation: Activation = "celu",
        celu_alpha: float = 0.3,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("kernel_size", kernel_size, (1, 3)),
            ("pooling", pooling, get_args(Pooling)),
            ("pool_after", pool_after, get_args(PoolAfter)),
            ("norm", norm, (True, False, "batch", "layer")),
            ("activation", activation, get_args(Activation)),
        ):
            if value not in allowed:
                raise UserError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")
        self.conv = Conv3x3(inputs, outputs) if kernel_size == 3 else nn.Conv2d(inputs, outputs, 1, bias=False)
        first = pool and pool_after == "convolution"
        self.average_first = first and pooling == "avg"
        fused: dict[str, Any] = {"activation": activation, "celu_alpha": celu_alpha, "pool": first and pooling == "max"}
        if pool and not first:
            self.late = (pooling, activation if pool_after == "norm" else "none", celu_alpha)
            fused["activation"] = "none" if pool_after == "norm" else activation
        if norm == "layer":
            fused["alpha"] = fused.pop("celu_alpha")
            self.norm = LayerNorm(outputs, freeze_scale=freeze_scale, eps=eps, **fused)
        elif norm:
            self.norm = GhostBatchNorm(
                outputs, ghost_batch, freeze_scale=freeze_scale, momentum=momentum, eps=eps, **fused
            )
        else:
            self.norm = Bias(outputs, **fused)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, whitening: PatchWhitening | None = None
    ) -> torch.Tensor:
        """Return the block's output for `x`, whitened by `whitening` first, plus `residual`; both are optional."""
        if whitening is None:
            x = self.conv(x)
        elif x.device.type == "cpu":  # the composed convolution takes longer there than the two
            x = self.conv(whitening(x))
        else:
            x = whitening.followed_by(self.conv, x)
        if self.average_first:
            x = F.avg_pool2d(x, 2)
        if self.late is None:
            return self.norm(x, residual)
        pooling, activation, alpha = self.late
        x = activated(POOLS[pooling](self.norm(x), 2), activation, alpha)
        return x if residual is None else x + residual


class ConvResBlock(nn.Module):
    """A pooled `ConvBN` and a residual branch of two more, without pool: `[N, inputs, H, W]` to `[N, outputs, H // 2,
    W // 2]`. All take `settings`. Without `residual` there is only the pooled one; `extra` is one more at the end."""

    def __init__(
        self, inputs: int, outputs: int, *, residual: bool = True, extra: bool = False, **settings: Any
    ) -> None:
        super().__init__()
        self.block = ConvBN(inputs, outputs, pool=True, **settings)
        self.residual = nn.ModuleList(ConvBN(outputs, outputs, **settings) for _ in range(2)) if residual else None
        self.extra = ConvBN(outputs, outputs, **settings) if extra else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x)
        if self.residual is not None:
            first, second = self.residual
            x = second(first(x), residual=x)
        extra = getattr(self, "extra", None)  # absent in older pickles
        return x if extra is None else extra(x)


class Bias(nn.Module):
    """Pool, trained bias, activation and residual sum: the substitute for `GhostBatchNorm` without batch norm."""

    wide_vectors: ClassVar[bool] = True

    def __init__(self, channels: int, *, activation: Activation, celu_alpha: float, pool: bool) -> None:
        super().__init__()
        self.activation, self.celu_alpha, self.pool = activation, celu_alpha, pool
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if self.pool:
            x = F.max_pool2d(x, 2)
        x = x + self.bias.to(x.dtype)[:, None, None]
        x = activated(x, self.activation, self.celu_alpha)
        return x if residual is None else x + residual


def activated(x: torch.Tensor, activation: str, celu_alpha: float) -> torch.Tensor:
    """Return the activation of `x`; `celu_alpha` is CELU's alone."""
    return F.celu(x, celu_alpha) if activation == "celu" else ACTIVATIONS[activation](x)


class GlobalMaxPool(nn.Module):
    """The largest value of each channel: `[N, C, H, W]` to `[N, C]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return global_pool(x)


class Head(nn.Linear):
    """A classifier without bias: features `[N, inputs]` to logits `[N, classes]`, times `scale`."""

    def __init__(self, inputs: int, classes: int, scale: float = 1 / 16) -> None:
        super().__init__(inputs, classes, bias=False)
        self.scale = scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.scale


def global_pool(x: torch.Tensor, pooling: Pooling = "max") -> torch.Tensor:
    """Return the largest or mean value of each channel of `[N, C, H, W]`: `[N, C]`."""
    # Not amax, which would spread the gradient over equal maxima: in half precision they are not rare.
    return F.max_pool2d(x, x.shape[2:]).flatten(1) if pooling == "max" else x.mean((2, 3))
