"""AlexNet (Krizhevsky 2014, "One weird trick") with torchvision's layers and names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.models.activation import activation
from fastcifar.models.dropout import Dropout
from fastcifar.models.network import Linear, Network
from fastcifar.models.units import Units
from fastcifar.recipes.networks.alexnet import AlexNetConfig


class AlexNet(Network[AlexNetConfig]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`; H and W are at least 63.

    Convolutions 11x11 of stride 4 to 64 channels, 5x5 to 192, 3x3 to 384, 256 and 256, each with ReLU, 3x3 max-pools of
    stride 2 after the first two and the last; mean pool to 6x6; dropout, linear to 4096, ReLU, twice; linear to the
    classes: 57,044,810 parameters for ten. Parameters have torchvision's names. Initial values are torch's own.
    """

    config_class = AlexNetConfig
    head = "classifier.6"

    def build(self, config: AlexNetConfig, classes: int) -> None:
        def act() -> nn.Module:
            return activation(config.activation, config.slope)

        a, b, c, d, e = config.widths
        layers = nn.Sequential(
            *(nn.Conv2d(self.in_channels, a, 11, stride=4, padding=2), act(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(a, b, 5, padding=2), act(), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(b, c, 3, padding=1), act(), nn.Conv2d(c, d, 3, padding=1), act()),
            *(nn.Conv2d(d, e, 3, padding=1), act(), nn.MaxPool2d(3, stride=2)),
        )
        self.features = layers  # pyright: ignore[reportAttributeAccessIssue]  (torch keeps it among the modules)
        self.classifier = nn.Sequential(
            *(Dropout(config.dropout), Linear(36 * e, config.hidden[0]), act()),
            *(Dropout(config.dropout), Linear(*config.hidden), act()),
            Linear(config.hidden[1], classes),
        )

    @property
    def features(self) -> _Convolutions:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The convolutions. Called, it gives what the classifier's last layer takes, as every network's."""
        layers = _Convolutions()
        layers._modules = self._convolutions._modules
        layers.network = (self,)  # made at each use: kept, it would be a cycle, which only the collector frees
        return layers

    @property
    def _convolutions(self) -> nn.Sequential:
        return cast(nn.Sequential, self._modules["features"])

    def before_head(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the classifier's last layer takes for images `[N, 3, H, W]`, normalized: `[N, F]`."""
        x = self._convolutions(x)
        single = x.shape[-2:] == (1, 1)  # as at 70 pixels; the mean pool's gradient is slow there
        x = (x.expand(-1, -1, 6, 6) if single else F.adaptive_avg_pool2d(x, 6)).flatten(1)
        for layer in list(self.classifier)[:-1]:
            x = layer(x)
        return x

    def units(self) -> Sequence[Units]:
        """Return those of each layer but the last; the module behind it is its activation."""
        places = {"features": (0, 3, 6, 8, 10), "classifier": (1, 4, 6)}
        layers = [(part, number) for part, numbers in places.items() for number in numbers]
        return [
            Units(f"{part}.{number}", f"{reader}.{following}", f"{part}.{number + 1}")
            for (part, number), (reader, following) in itertools.pairwise(layers)
        ]

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier[-1](self.before_head(x))


class _Convolutions(nn.Sequential):
    """Layers by torchvision's names, which begin with `features`: the name of a method of every network here. So this
    module answers to that call, for all of its network but the last layer."""

    network: tuple[AlexNet, ...] = ()  # in a tuple, as it is no part of this module; a slice has none

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.network[0].before_head(input) if self.network else super().forward(input)
