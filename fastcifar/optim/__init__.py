"""Flat buffers, the optimizers that work on them, and optimizers for any parameters.

`build_optimizer` imports the one that a recipe names and builds it over flat buffers: `FlatSGD`, `FlatMuon`, `FlatLARS`
or `TorchOptimizer`, and around it `FlatL2Init` and `FlatLookahead`. `SGD`, `LARS`, `Lookahead` and `Muon` (in
`fastcifar.optim.muon`, as `FlatMuon` is) are used alone, as torch's own are.
"""

from __future__ import annotations

import functools

from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.l2_init import FlatL2Init
from fastcifar.optim.lars import LARS, FlatLARS
from fastcifar.optim.lookahead import FlatLookahead, Lookahead
from fastcifar.optim.newton_schulz import newton_schulz, polar_express
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
    "FlatL2Init",
    "FlatLARS",
    "FlatLookahead",
    "FlatModel",
    "FlatOptimizer",
    "FlatSGD",
    "GroupOptimizer",
    "Lookahead",
    "TorchOptimizer",
    "build_optimizer",
    "learning_rates",
    "newton_schulz",
    "polar_express",
]


def build_optimizer(
    flat: FlatModel, recipe: Recipe, total_steps: int, own: OwnOptimizer | None = None
) -> FlatOptimizer:
    """Build the optimizer that `recipe.optimizer` describes.

    flat: the buffers that it works on.
    recipe: its section `optimizer` names the optimizer; one of torch's form is wrapped in a `TorchOptimizer`.
    total_steps: steps of the training.
    own: used in its place: a class of torch's form, or a function of a list of parameters that returns an optimizer.

    Raises UserError where `own` gives no optimizer.
    """
    build = functools.partial(_build, own=own)
    if recipe.l2_init:
        build = functools.partial(FlatL2Init, build)
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
