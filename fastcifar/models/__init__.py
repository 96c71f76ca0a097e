"""Networks and their layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.blocks import ConvBN, ConvResBlock, GlobalMaxPool, Head
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.mlp import MLP
from fastcifar.models.network import Network, memory_format
from fastcifar.models.own import OwnNetwork, own_network
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
    "OwnNetwork",
    "PatchWhitening",
    "ResNet18",
    "SpeedrunNet",
    "build_model",
    "memory_format",
]


def build_model(
    recipe: Recipe,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    own: Callable[[int], nn.Module] | None = None,
    side: int = 32,
) -> Network:
    """Build the network that `recipe` names, freshly initialised from torch's global generator, on the CPU in float32.

    `own`, a class or function of the number of classes that gives a module, builds one in its place, which is tried on
    two images of `side` pixels. Raises UserError where that does not do as a network (see `own_network`).
    """
    if own is not None:
        return own_network(own, classes, mean, std, side)
    if recipe.network == "resnet18":
        return ResNet18(recipe.resnet, classes, mean, std)
    if recipe.network == "mlp":
        return MLP(recipe.mlp, classes, mean, std)
    if recipe.network == "speedrun":
        return SpeedrunNet(recipe.speedrun, classes, mean, std)
    return DavidNet(recipe.model, classes, mean, std)
