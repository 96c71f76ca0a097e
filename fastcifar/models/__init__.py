"""Networks and their layers. `build_model` imports the network that a recipe names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from torch import nn

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.blocks import ConvBN, ConvResBlock, GlobalMaxPool, Head
from fastcifar.models.ensemble import Members, build_members
from fastcifar.models.freezing import freeze
from fastcifar.models.network import Network, memory_format, normalization, remember_normalization
from fastcifar.models.own import OwnNetwork, own_network
from fastcifar.models.units import Units
from fastcifar.models.whitening import PatchWhitening
from fastcifar.recipes import EnsembleConfig, NetworkConfig, Recipe
from fastcifar.registry import resolve

__all__ = [
    "ConvBN",
    "ConvResBlock",
    "GhostBatchNorm",
    "GlobalMaxPool",
    "Head",
    "Members",
    "Network",
    "OwnNetwork",
    "PatchWhitening",
    "Units",
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
    seed: int = 0,
) -> Network:
    """Build a network on the CPU in float32, freshly initialized from torch's global generator.

    recipe: its section `network` describes the network; with several members in its section `ensemble`, each of these.
    classes: number of classes.
    mean, std: normalize its images, 0 to 255 units.
    own: builds another network: a class or function of the number of classes that returns a module.
    sides: sides of images in pixels, that of the data set's first; none: unknown. A module of `own`, or of a builder
        that is no `Network`, is tried on two of each.
    seed: of the run, which names the seeds of an ensemble's members.

    Raises UserError for a module that is no network (see `own_network`), for sides that the recipe's network does not
    take, and for frozen layers that it does not have.
    """
    if recipe.ensemble.members > 1:
        one = dataclasses.replace(recipe, ensemble=EnsembleConfig())
        build = functools.partial(build_model, one, classes, mean, std, own, sides)
        return build_members(recipe.ensemble, seed, own or resolve(recipe.network.builder), build)
    return freeze(_built(recipe.network, classes, mean, std, own, sides), recipe)


def _built(
    config: NetworkConfig,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    own: Callable[[int], nn.Module] | None,
    sides: Sequence[int],
) -> Network:
    if own is not None:
        return own_network(own, classes, mean, std, sides)
    for side in sides:
        config.refuse_side(side)
    builder = resolve(config.builder)
    if isinstance(builder, type) and issubclass(builder, Network):
        side = {"side": sides[0]} if config.one_side and sides else {}
        return builder(config, classes, mean, std, **side)
    return own_network(functools.partial(builder, config), classes, mean, std, sides)
