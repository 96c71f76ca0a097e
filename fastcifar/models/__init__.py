"""Networks and their layers. `build_model` imports the network that a recipe names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import nn

from fastcifar.errors import UserError
from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.blocks import ConvBN, ConvResBlock, GlobalMaxPool, Head
from fastcifar.models.network import Network, memory_format, normalization, remember_normalization
from fastcifar.models.own import OwnNetwork, own_network
from fastcifar.models.whitening import PatchWhitening
from fastcifar.recipes import Recipe
from fastcifar.registry import resolve

__all__ = [
    "ConvBN",
    "ConvResBlock",
    "GhostBatchNorm",
    "GlobalMaxPool",
    "Head",
    "Network",
    "OwnNetwork",
    "PatchWhitening",
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
    """Build the network that `recipe.network` describes, freshly initialized from torch's global generator, on the CPU
    in float32.

    `own`, a class or function of the number of classes that gives a module, builds one in its place. That module, and
    one of a network whose builder is no class of `Network`, is tried on two images of each of the `sides`, in pixels.
    Raises UserError where it does not do as a network (see `own_network`), and for images of a side that the recipe's
    network does not take.
    """
    if own is not None:
        return own_network(own, classes, mean, std, sides)
    config = recipe.network
    for side in sides:
        if config.sides and side not in config.sides:
            allowed = f"{' or '.join(map(str, config.sides))} for {config.kind}"
            raise UserError(f"network is {config.kind}, and images have {side} pixels a side; allowed: {allowed}")
    builder = resolve(config.builder)
    if isinstance(builder, type) and issubclass(builder, Network):
        return builder(config, classes, mean, std)
    return own_network(functools.partial(builder, config), classes, mean, std, sides)
