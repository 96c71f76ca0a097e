"""Layers that a recipe freezes from the start (its `freeze` and `frozen_mode`)."""

from __future__ import annotations

from torch import nn

from fastcifar.errors import UserError
from fastcifar.models.network import Network
from fastcifar.recipes import Recipe


def freeze(network: Network, recipe: Recipe) -> Network:
    """Let `network` freeze the layers in `recipe.freeze` from the start, in the mode of `frozen_mode`; return it.

    A layer is a module that has parameters itself, such as a convolution or a batch norm, in the order of
    `named_modules`. In a mode other than "train" what has none, such as dropout, is in evaluation mode too: with
    "backbone" all outside of the classifier, with a number what stands before the last frozen layer.
    Raises UserError where its classifier is not known, and where nothing would train.
    """
    if recipe.freeze == "none":
        return network
    if not network.head:
        said = f"freeze is {recipe.freeze}, and which layer of {type(network).__name__} classifies is not known"
        raise UserError(f"{said}; allowed: none; a module of your own freezes by requires_grad_(False) and eval()")
    head = f"{network.head}."
    backbone = {name: each for name, each in network.named_modules() if not _overlap(f"{name}." if name else "", head)}
    layers = list(layers_of(network).values())
    if recipe.freeze == "backbone":
        frozen: list[nn.Module] = list(backbone.values())
    else:
        every, last = list(network.modules()), layers[min(int(recipe.freeze), len(layers)) - 1]
        before = every[: every.index(last) + 1]
        frozen = [each for each in before if each in layers or not any(True for _ in each.children())]
    ids = {id(parameter) for each in frozen for parameter in each.parameters(recurse=False)}
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    names = [name for name, parameter in trained.items() if id(parameter) in ids]
    if len(names) == len(trained):
        raise UserError(f"freeze is {recipe.freeze}, which leaves nothing to train; allowed: up to {len(layers) - 1}")
    network.frozen_from = {**network.frozen_from, **dict.fromkeys(names, 0.0)}
    for each in frozen if recipe.frozen_mode != "train" else ():
        each.training = False  # of it alone: a layer above may hold the classifier
    return network


def never_train(network: Network) -> set[int]:
    """Return the ids of the parameters that no step changes: those without a gradient, or frozen from the start."""
    still = {name for name, epoch in network.frozen_from.items() if epoch <= 0}
    return {id(each) for name, each in network.named_parameters() if name in still or not each.requires_grad}


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have parameters themselves by their names, in the order in which `freeze` counts them."""
    return {name: each for name, each in network.named_modules() if any(True for _ in each.parameters(recurse=False))}


def _overlap(one: str, other: str) -> bool:
    """Return True where a module, by its name with a dot behind it, is within the other, or holds it."""
    return one.startswith(other) or other.startswith(one)
