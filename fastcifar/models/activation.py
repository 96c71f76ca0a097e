"""Activations by their names in a recipe, as layers and after batch norm."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.layernorm import LayerNorm


def activation(name: str, slope: float = 0.01) -> nn.Module:
    """Return the layer: torch's default of its arguments, but for leaky_relu's `slope` of negative inputs."""
    layers = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
    return nn.LeakyReLU(slope) if name == "leaky_relu" else layers[name]()


def norm_of(channels: int, name: str, slope: float = 0.01, kind: str = "batch") -> GhostBatchNorm | LayerNorm:
    """Return plain batch norm, or with the `kind` "layer" layer norm, with the activation after it; "relu", "gelu" and
    "silu" are fused with batch norm."""
    if kind == "layer":
        return LayerNorm(channels, activation=name, alpha=slope)
    return LeakyNorm(channels, slope) if name == "leaky_relu" else GhostBatchNorm(channels, activation=name)


class LeakyNorm(GhostBatchNorm):
    """Batch norm, then LeakyReLU (Maas 2013), which the kernels lack: one more pass."""

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__(channels)
        self.slope = slope

    def forward(
        self, input: torch.Tensor, residual: torch.Tensor | None = None, border: bool = False, pooled: bool = False
    ) -> torch.Tensor:
        return F.leaky_relu(super().forward(input, residual, border, pooled), self.slope)
