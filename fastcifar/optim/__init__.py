"""Flat buffers and the optimisers that work on them."""

from __future__ import annotations

from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.sgd import SGD
from fastcifar.optim.torch_optimizer import TorchOptimizer
from fastcifar.recipes import Recipe

__all__ = ["SGD", "FlatGroup", "FlatModel", "TorchOptimizer", "build_optimizer"]


def build_optimizer(flat: FlatModel, recipe: Recipe, total_steps: int) -> SGD | TorchOptimizer:
    """The optimiser that `recipe` names, over the buffers of `flat`, for a training of `total_steps`."""
    return (SGD if recipe.optim.name == "sgd" else TorchOptimizer)(flat, recipe, total_steps)
