"""Flat buffers and the optimizers that work on them; and some of the latter for anybody's parameters.

Over flat buffers, by `build_optimizer`, which imports the one that a recipe names: `FlatSGD`, `FlatMuon`, `FlatLARS`
and `TorchOptimizer`, and around any of these `FlatLookahead`. Alone, as torch's own are used: `SGD`, `LARS` and `Muon`.
"""

from __future__ import annotations

import functools

from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.lars import LARS, FlatLARS
from fastcifar.optim.lookahead import FlatLookahead
from fastcifar.optim.newton_schulz import newton_schulz
from fastcifar.optim.optimizer import FlatOptimizer, GroupOptimizer
from fastcifar.optim.schedule import learning_rates
from fastcifar.optim.sgd import SGD, FlatSGD
from fastcifar.optim.torch_optimizer import OwnOptimizer, TorchOptimizer
from fastcifar.recipes import Recipe
from fastcifar.registry import resolve

__all__ = [
    "LARS",
    "SGD",
    "FlatGroup",
    "FlatLARS",
    "FlatLookahead",
    "FlatModel",
    "FlatOptimizer",
    "FlatSGD",
    "GroupOptimizer",
    "TorchOptimizer",
    "build_optimizer",
    "learning_rates",
    "newton_schulz",
]


def build_optimizer(
    flat: FlatModel, recipe: Recipe, total_steps: int, own: OwnOptimizer | None = None
) -> FlatOptimizer:
    """Build the optimizer that `recipe.optimizer` describes, over the buffers of `flat`, for a training of
    `total_steps`.

    `own`, a class of torch's form or a function of a list of parameters that gives such an optimizer, takes its place;
    so does the class that is the recipe's builder where it is of torch's form (see `TorchOptimizer`). Raises UserError
    where that gives none.
    """
    build = functools.partial(_build, own=own)
    if recipe.lookahead.every:
        build = functools.partial(FlatLookahead, build)
    return build(flat, recipe, total_steps)


def _build(flat: FlatModel, recipe: Recipe, total_steps: int, own: OwnOptimizer | None) -> FlatOptimizer:
    if own is None:
        builder = resolve(recipe.optimizer.builder)
        if isinstance(builder, type) and issubclass(builder, FlatOptimizer):
            return builder(flat, recipe, total_steps)
        own = builder if isinstance(builder, type) else functools.partial(builder, recipe.optimizer)
    return TorchOptimizer(flat, recipe, total_steps, own)
