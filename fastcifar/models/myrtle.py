"""The networks of the first four posts of "How to train your ResNet" (Page 2018), before DavidNet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.blocks import global_pool
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.network import Linear, Network
from fastcifar.models.resnet import Shortcut
from fastcifar.models.units import Units
from fastcifar.recipes.networks.myrtle import MyrtleConfig


class MyrtleNet(Network[MyrtleConfig]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`.

    A 3x3 convolution, with or without norm and ReLU; four layers, each after the first at half the resolution; the
    global maxima beside the global means; linear. With residual blocks, the default, each layer is two of them: 18
    layers of weights, 5,205,962 parameters for ten classes. Every other network is a field of `MyrtleConfig`. Batch
    norm is plain, over the whole batch. Initial values are torch's own, but for batch norm's scales.
    """

    config_class = MyrtleConfig
    head = "classifier"

    def build(self, config: MyrtleConfig, classes: int) -> None:
        first = config.widths[0]
        self.stem = nn.Sequential(Conv3x3(self.in_channels, first))
        if config.stem_norm:
            self.stem.append(self._norm(first))
        self.layers = nn.Sequential()
        for inputs, outputs in itertools.pairwise((first, *config.widths)):
            self.layers.append(self._layer(inputs, outputs, halves=len(self.layers) > 0))
        features = config.widths[-1] * (2 if config.final_pool == "max-avg" else 1)
        self.classifier = Linear(features, classes)

    def _layer(self, inputs: int, outputs: int, halves: bool) -> nn.Module:
        config, stride = self.config, 2 if halves else 1
        if config.blocks == "residual":
            return nn.Sequential(
                PreActBlock(self._norm(inputs), self._norm(outputs), stride),
                PreActBlock(self._norm(outputs), self._norm(outputs), 1),
            )
        if config.blocks == "shortcut":
            shortcut = [Shortcut(inputs, outputs, stride)] if halves else []
            return nn.Sequential(self._norm(inputs), *shortcut, self._norm(outputs))
        if not halves:
            return nn.Identity()
        if config.downsampling == "max-pool":
            return nn.Sequential(Conv3x3(inputs, outputs), self._norm(outputs), nn.MaxPool2d(2))
        conv = Shortcut(inputs, outputs, 2) if config.downsampling == "1x1" else Conv3x3(inputs, outputs, 2)
        return nn.Sequential(conv, self._norm(outputs))

    def _norm(self, channels: int) -> GhostBatchNorm:
        kind = HalfBatchNorm if self.config.norm_precision == "half" else GhostBatchNorm
        norm = kind(channels, activation="relu")
        if self.config.norm_scale == "uniform":
            nn.init.uniform_(norm.weight)
        return norm

    def units(self) -> Sequence[Units]:
        """Return those within residual blocks; of the other networks' none are known."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, PreActBlock)]
        return [Units(f"{block}.conv1", f"{block}.conv2", f"{block}.norm2", f"{block}.norm2") for block in blocks]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x, pool = self.layers(self.stem(x)), self.config.final_pool
        if pool != "max-avg":
            return global_pool(x, pool)
        return torch.cat([global_pool(x, "max"), global_pool(x, "avg")], 1)


class PreActBlock(nn.Module):
    """Norm and ReLU, then two 3x3 convolutions with norm and ReLU between them, and what they began with added, where
    the shape changes after a 1x1 convolution (He 2016, identity mappings; here all of it begins after the ReLU)."""

    def __init__(self, norm1: GhostBatchNorm, norm2: GhostBatchNorm, stride: int) -> None:
        super().__init__()
        inputs, outputs = norm1.num_features, norm2.num_features
        self.norm1 = norm1
        self.conv1 = Conv3x3(inputs, outputs, stride)
        self.norm2 = norm2
        self.conv2 = Conv3x3(outputs, outputs)
        self.shortcut = Shortcut(inputs, outputs, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(self.norm2(self.conv1(x))) + shortcut


class HalfBatchNorm(GhostBatchNorm):
    """Batch norm and ReLU by torch's own operators, with parameters and running statistics in the compute type."""

    wide_vectors: ClassVar[bool] = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        share = self._share() if self.training else 0.0
        return F.relu(F.batch_norm(input, *tensors, self.training, share, self.eps))
