"""Networks and their layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from fastcifar.errors import UserError
from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.blocks import ConvBN, ConvResBlock, GlobalMaxPool, Head
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.mlp import MLP
from fastcifar.models.network import Network, memory_format, normalization, remember_normalization
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
    "normalization",
    "remember_normalization",
]


def build_model(
    recipe: Recipe,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    own: Callable[[int], nn.Module] | None = None,
    sides: Sequence[int] = (32,),
) -> Network:
    """Build the network that `recipe` names, freshly initialised from torch's global generator, on the CPU in float32.

    `own`, a class or function of the number of classes that gives a module, builds one in its place, which is tried on
    two images of each of the `sides`, in pixels. Raises UserError where that does not do as a network (see
    `own_network`), and for an MLP of images that it does not take.
    """
    if own is not None:
        return own_network(own, classes, mean, std, sides)
    if recipe.network == "resnet18":
        return ResNet18(recipe.resnet, classes, mean, std)
    if recipe.network == "mlp":
        if max(sides) != 32:
            raise UserError(f"network is mlp, and images have {max(sides)} pixels a side; allowed: 32 for an mlp")
        return MLP(recipe.mlp, classes, mean, std)
    if recipe.network == "speedrun":
        return SpeedrunNet(recipe.speedrun, classes, mean, std)
    return DavidNet(recipe.model, classes, mean, std)
