"""Flat buffers and the optimisers that work on them; and some of the latter for anybody's parameters.

Over flat buffers, by `build_optimizer`: `FlatSGD`, `FlatMuon`, `FlatLARS` and `TorchOptimizer`, and around any of these
`FlatLookahead`. Alone, as torch's own are used: `SGD`, `Muon`, `LARS` and, around any of torch's form, `Lookahead`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.lars import LARS, FlatLARS
from fastcifar.optim.lookahead import FlatLookahead, Lookahead
from fastcifar.optim.muon import FlatMuon, Muon
from fastcifar.optim.newton_schulz import newton_schulz
from fastcifar.optim.optimizer import FlatOptimizer
from fastcifar.optim.schedule import learning_rates
from fastcifar.optim.sgd import SGD, FlatSGD
from fastcifar.optim.torch_optimizer import OwnOptimizer, TorchOptimizer
from fastcifar.recipes import Recipe

__all__ = [
    "LARS",
    "SGD",
    "FlatGroup",
    "FlatLARS",
    "FlatLookahead",
    "FlatModel",
    "FlatMuon",
    "FlatOptimizer",
    "FlatSGD",
    "Lookahead",
    "Muon",
    "TorchOptimizer",
    "build_optimizer",
    "learning_rates",
    "newton_schulz",
]

_OURS: dict[str, type[FlatOptimizer]] = {"sgd": FlatSGD, "muon": FlatMuon, "lars": FlatLARS}


def build_optimizer(
    flat: FlatModel, recipe: Recipe, total_steps: int, own: OwnOptimizer | None = None
) -> FlatOptimizer:
    """Build the optimizer that `recipe` names, over the buffers of `flat`, for a training of `total_steps`.

    `own`, a class of torch's form or a function of a list of parameters that gives such an optimizer, takes its place
    (see `TorchOptimizer`). Raises UserError where that gives none.
    """
    build: Callable[..., FlatOptimizer] = _OURS.get(recipe.optim.name, TorchOptimizer)
    if own is not None:
        build = functools.partial(TorchOptimizer, own=own)
    if recipe.lookahead.every:
        build = functools.partial(FlatLookahead, build)
    return build(flat, recipe, total_steps)
