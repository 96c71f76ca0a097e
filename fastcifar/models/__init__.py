"""Networks and their layers."""

from __future__ import annotations

from collections.abc import Sequence

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.blocks import ConvBN, ConvResBlock, GlobalMaxPool, Head
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.mlp import MLP
from fastcifar.models.network import Network
from fastcifar.models.resnet import ResNet18
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.models.whitening import PatchWhitening
from fastcifar.recipes import Recipe

__all__ = [
    "MLP",
    "ConvBN",
    "ConvResBlock",
    "DavidNet",
    "GhostBatchNorm",
    "GlobalMaxPool",
    "Head",
    "Network",
    "PatchWhitening",
    "ResNet18",
    "SpeedrunNet",
    "build_model",
]


def build_model(recipe: Recipe, classes: int, mean: Sequence[float], std: Sequence[float]) -> Network:
    """The network that `recipe` names, freshly initialised from torch's global generator, on the CPU in float32."""
    if recipe.network == "resnet18":
        return ResNet18(recipe.resnet, classes, mean, std)
    if recipe.network == "mlp":
        return MLP(recipe.mlp, classes, mean, std)
    if recipe.network == "speedrun":
        return SpeedrunNet(recipe.speedrun, classes, mean, std)
    return DavidNet(recipe.model, classes, mean, std)
