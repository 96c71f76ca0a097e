"""Wide residual networks for small images (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fastcifar.models.activation import norm_of
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.dropout import Dropout
from fastcifar.models.network import Linear, Network
from fastcifar.models.resnet import Shortcut
from fastcifar.models.units import Units
from fastcifar.recipes.networks.wideresnet import WideResNetConfig


class WideResNet(Network[WideResNetConfig]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`.

    A 3x3 convolution to 16 channels; three groups of (depth - 4) / 6 `WideBlock`s with 16, 32 and 64 times `widen`
    channels, each group after the first at half the resolution; batch norm, ReLU, global mean, linear: 10,961,370
    parameters for WRN-16-8 and ten classes. Initial values: convolutions normal with variance 2 / (outputs * kernel
    area), scales 1, biases 0, the linear layer torch's own. Batch norm is plain, over the whole batch.
    """

    config_class = WideResNetConfig
    head = "fc"

    def build(self, config: WideResNetConfig, classes: int) -> None:
        self.conv1 = Conv3x3(self.in_channels, 16)
        self.groups, inputs = nn.Sequential(), 16
        for number in range(3):
            outputs, group = 16 * config.widen * 2**number, nn.Sequential()
            for block in range((config.depth - 4) // 6):
                group.append(WideBlock(inputs, outputs, 2 if number and not block else 1, config))
                inputs = outputs
            self.groups.append(group)
        self.bn = norm_of(inputs, config.activation, config.slope)
        self.fc = Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def units(self) -> Sequence[Units]:
        blocks = [name for name, module in self.named_modules() if isinstance(module, WideBlock)]
        return [Units(f"{block}.conv1", f"{block}.conv2", f"{block}.bn2", f"{block}.bn2") for block in blocks]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.groups(self.conv1(x))).mean((2, 3))


class WideBlock(nn.Module):
    """Twice batch norm, activation and a 3x3 convolution, with dropout before the second one. The input is added to
    that; where the shape changes, what the first activation gives, after a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: WideResNetConfig) -> None:
        super().__init__()
        self.bn1 = norm_of(inputs, config.activation, config.slope)
        self.conv1 = Conv3x3(inputs, outputs, stride)
        self.bn2 = norm_of(outputs, config.activation, config.slope)
        self.dropout = Dropout(config.dropout) if config.dropout else None
        self.conv2 = Conv3x3(outputs, outputs)
        self.shortcut = Shortcut(inputs, outputs, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(x)
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.bn2(self.conv1(y))
        return self.conv2(y if self.dropout is None else self.dropout(y)) + shortcut
