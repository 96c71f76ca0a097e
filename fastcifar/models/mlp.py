"""The perceptron of "On Warm-Starting Neural Network Training" (Ash and Adams 2020): 3072-100-100-classes."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from fastcifar.models.network import Linear, Network
from fastcifar.recipes.networks.mlp import MLPConfig


class MLP(Network[MLPConfig]):
    """Images `[N, 3, side, side]`, normalized, to logits `[N, classes]`: linear layers with ReLU between them.

    Pixels are read in the order (row, column, channel), as they lie in memory. Initial values are torch's own for
    linear layers: weights and biases uniform within 1 / sqrt(inputs).
    """

    config_class = MLPConfig
    head = "classifier"

    def build(self, config: MLPConfig, classes: int) -> None:
        sizes = (self.in_channels * self.side**2, *config.hidden)
        self.hidden = nn.ModuleList(itertools.starmap(Linear, itertools.pairwise(sizes)))
        self.classifier = Linear(sizes[-1], classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1).flatten(1)  # no copy: images are channels-last
        for layer in self.hidden:
            x = layer(x).relu()
        return x
