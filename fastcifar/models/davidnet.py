"""DavidNet, the 9-layer ResNet of "How to train your ResNet" (Page 2018-2019), as the series' last post left it."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.network import Network
from fastcifar.models.whitening import PatchWhitening
from fastcifar.recipes import ModelConfig

_ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "none": lambda x: x}


class DavidNet(Network[ModelConfig]):
    """Images `[N, 3, H, W]`, normalised, to logits `[N, classes]`.

    Stem: frozen 3x3 patch whitening to 27 channels, 1x1 convolution to 64, ghost batch norm, CELU. Three layers of 128,
    256 and 512 channels: 3x3 convolution, 2x2 max-pool, ghost batch norm, CELU; the first and third with a residual
    branch of two more such convolutions without pool. Global max-pool, linear without bias, times 1/16. H and W are at
    least 8. Every trick is a field of `ModelConfig`. Initial values are torch's own, whatever the layer.
    """

    config_class = ModelConfig
    head = "classifier"

    def build(self, config: ModelConfig, classes: int) -> None:
        stem, *widths = config.widths
        if config.whitening:
            self.whitening = PatchWhitening(3, 3, config.whitening_eps)
            self.stem = ConvBlock(27, stem, config, kernel_size=1)
        else:
            self.whitening = None
            self.stem = ConvBlock(3, stem, config)
        self.layers = nn.Sequential()
        for number, (before, width) in enumerate(zip((stem, *widths), widths, strict=False), start=1):
            self.layers.append(Layer(before, width, config, residual=number in config.residual))
        self.classifier = nn.Linear(widths[-1], classes, bias=False)
        self.logit_scale = config.logit_scale

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set the whitening filters, if it has any, from uint8 training images `[N, H, W, 3]`: the first of them, as
        many as the configuration says."""
        if self.config.whitening:
            self.whitening.fit(images[: self.config.whitening_images], self.mean, self.std)

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.stem(x, whitening=self.whitening))
        # Not amax, which would spread the gradient over equal maxima: in half precision they are not rare.
        x = F.max_pool2d(x, x.shape[2:]).flatten(1) if self.config.final_pool == "max" else x.mean((2, 3))
        return self.classifier(x)


class Layer(nn.Module):
    """A pooled convolution block and, if asked for, a residual branch of two more blocks."""

    def __init__(self, before: int, width: int, config: ModelConfig, residual: bool) -> None:
        super().__init__()
        self.block = ConvBlock(before, width, config, pool=True)
        self.residual = (
            nn.ModuleList([ConvBlock(width, width, config), ConvBlock(width, width, config)]) if residual else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x)
        if self.residual is None:
            return x
        first, second = self.residual
        return second(first(x), residual=x)


class ConvBlock(nn.Module):
    """Convolution, 2x2 pool if asked for, ghost batch norm (or a trained bias alone), activation, residual sum. What is
    convolved is first whitened by `whitening`, if given."""

    def __init__(
        self, before: int, width: int, config: ModelConfig, *, kernel_size: int = 3, pool: bool = False
    ) -> None:
        super().__init__()
        self.conv = Conv3x3(before, width) if kernel_size == 3 else nn.Conv2d(before, width, 1, bias=False)
        self.average_first = pool and config.pool == "avg"
        max_first = pool and config.pool == "max"
        self.norm = (
            GhostBatchNorm(
                width,
                config.ghost_batch,
                activation=config.activation,
                celu_alpha=config.celu_alpha,
                pool=max_first,
                freeze_scale=config.freeze_scale,
                momentum=config.norm_momentum,
                eps=config.norm_eps,
            )
            if config.norm
            else Bias(width, activation=config.activation, celu_alpha=config.celu_alpha, pool=max_first)
        )

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, whitening: PatchWhitening | None = None
    ) -> torch.Tensor:
        if whitening is None:
            x = self.conv(x)
        elif x.device.type == "cpu":  # where convolutions of 3 channels take longer than what one less saves
            x = self.conv(whitening(x))
        else:
            x = whitening.followed_by(self.conv, x)
        if self.average_first:
            x = F.avg_pool2d(x, 2)
        return self.norm(x, residual)


class Bias(nn.Module):
    """What stands in for `GhostBatchNorm` in a network without batch norm: pool, trained bias, activation, residual
    sum."""

    wide_vectors: ClassVar[bool] = True

    def __init__(self, channels: int, *, activation: str, celu_alpha: float, pool: bool) -> None:
        super().__init__()
        self.activation, self.celu_alpha, self.pool = activation, celu_alpha, pool
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if self.pool:
            x = F.max_pool2d(x, 2)
        x = x + self.bias.to(x.dtype)[:, None, None]
        x = F.celu(x, self.celu_alpha) if self.activation == "celu" else _ACTIVATIONS[self.activation](x)
        return x if residual is None else x + residual
