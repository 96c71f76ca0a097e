"""LeNet (LeCun, Bottou, Bengio and Haffner 1998, LeNet-5), as vision courses have it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.models.activation import activation
from fastcifar.models.network import Linear, Network
from fastcifar.models.units import Units
from fastcifar.recipes.networks.lenet import LeNetConfig


class LeNet(Network[LeNetConfig]):
    """Images `[N, 3, side, side]`, normalized, to logits `[N, classes]`; the side is at least 12.

    5x5 convolution with padding 2 to 6 channels, sigmoid, 2x2 mean pool, 5x5 convolution without padding to 16
    channels, sigmoid, 2x2 mean pool; linear to 120, to 84 and to the classes, sigmoids between: at 32 pixels 99,276
    parameters for 200 classes. Initial values are torch's own.
    """

    config_class = LeNetConfig
    head = "classifier"

    def build(self, config: LeNetConfig, classes: int) -> None:
        config.refuse_side(self.side)
        first, second = config.channels
        side = (self.side // 2 - 4) // 2  # after both pools
        self.conv1 = nn.Conv2d(self.in_channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = Linear(second * side**2, config.hidden[0])
        self.fc2 = Linear(*config.hidden)
        self.classifier = Linear(config.hidden[1], classes)
        self.activation = activation(config.activation, config.slope)

    def units(self) -> Sequence[Units]:
        layers, settings = ("conv1", "conv2", "fc1", "fc2", self.head), self.config
        further = {"activation": settings.activation, "slope": settings.slope}
        return [Units(maker, reader, maker, **further) for maker, reader in itertools.pairwise(layers)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(self.activation(self.conv1(x)), 2)
        x = F.avg_pool2d(self.activation(self.conv2(x)), 2)
        return self.activation(self.fc2(self.activation(self.fc1(x.flatten(1)))))
