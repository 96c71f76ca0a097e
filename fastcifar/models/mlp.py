"""The perceptron of "On Warm-Starting Neural Network Training" (Ash and Adams 2020): 3072-100-100-classes."""

from __future__ import annotations

import torch
from torch import nn

from fastcifar.models.network import Linear, Network
from fastcifar.recipes.networks.mlp import MLPConfig

PIXELS = 3 * 32 * 32


class MLP(Network[MLPConfig]):
    """Images `[N, 3, 32, 32]`, normalized, to logits `[N, classes]`: linear layers with ReLU between them.

    The pixels are read as they lie in memory, in the order (row, column, channel). Initial values are torch's own for
    linear layers: uniform, up to 1 / sqrt(inputs), for weights and biases.
    """

    config_class = MLPConfig
    head = "classifier"

    def build(self, config: MLPConfig, classes: int) -> None:
        sizes = (PIXELS, *config.hidden)
        self.hidden = nn.ModuleList(Linear(before, width) for before, width in zip(sizes, config.hidden, strict=False))
        self.classifier = Linear(sizes[-1], classes)

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1).flatten(1)  # no copy: images are channels-last
        for layer in self.hidden:
            x = layer(x).relu()
        return self.classifier(x)
