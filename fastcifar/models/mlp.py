"""The perceptron of "On Warm-Starting Neural Network Training" (Ash and Adams 2020): 3072-100-100-classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from fastcifar.models.layernorm import LayerNorm
from fastcifar.models.network import Linear, Network
from fastcifar.models.units import Units
from fastcifar.recipes.networks.mlp import MLPConfig


class MLP(Network[MLPConfig]):
    """Images `[N, 3, side, side]`, normalized, to logits `[N, classes]`: linear layers with ReLU between them, with
    `config.norm` "layer" after layer norm.

    Pixels are read in the order (row, column, channel), as they lie in memory. Initial values are torch's own for
    linear layers: weights and biases uniform within 1 / sqrt(inputs).
    """

    config_class = MLPConfig
    head = "classifier"

    def build(self, config: MLPConfig, classes: int) -> None:
        sizes = (self.in_channels * self.side**2, *config.hidden)
        self.hidden = nn.ModuleList(itertools.starmap(Linear, itertools.pairwise(sizes)))
        if config.norm == "layer":
            self.norms = nn.ModuleList(map(LayerNorm, config.hidden))
        self.classifier = Linear(sizes[-1], classes)

    def units(self) -> Sequence[Units]:
        layers = [*(f"hidden.{number}" for number in range(len(self.hidden))), self.head]
        norms = [f"norms.{number}" if self.config.norm == "layer" else "" for number in range(len(self.hidden))]
        pairs = zip(itertools.pairwise(layers), norms, strict=True)
        return [Units(maker, reader, norm or maker, norm, "relu") for (maker, reader), norm in pairs]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1).flatten(1)  # no copy: images are channels-last
        for number, layer in enumerate(self.hidden):
            x = layer(x)
            x = (self.norms[number](x) if self.config.norm == "layer" else x).relu()
        return x
