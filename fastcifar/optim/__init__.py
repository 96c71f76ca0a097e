"""Flat buffers and the optimisers that work on them; and some of the latter for anybody's parameters.

Over flat buffers, by `build_optimizer`: `SGD`, `FlatMuon`, `FlatLARS` and `TorchOptimizer`, and around any of these
`FlatLookahead`. Alone, as torch's own are used: `Muon`, `LARS` and, around any of torch's form, `Lookahead`.
"""

from __future__ import annotations

import functools

from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.lars import LARS, FlatLARS
from fastcifar.optim.lookahead import FlatLookahead, Lookahead
from fastcifar.optim.muon import FlatMuon, Muon
from fastcifar.optim.newton_schulz import newton_schulz
from fastcifar.optim.optimizer import FlatOptimizer
from fastcifar.optim.schedule import learning_rates
from fastcifar.optim.sgd import SGD
from fastcifar.optim.torch_optimizer import TorchOptimizer
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
    "Lookahead",
    "Muon",
    "TorchOptimizer",
    "build_optimizer",
    "learning_rates",
    "newton_schulz",
]

_OURS: dict[str, type[FlatOptimizer]] = {"sgd": SGD, "muon": FlatMuon, "lars": FlatLARS}


def build_optimizer(flat: FlatModel, recipe: Recipe, total_steps: int) -> FlatOptimizer:
    """The optimiser that `recipe` names, over the buffers of `flat`, for a training of `total_steps`."""
    build = _OURS.get(recipe.optim.name, TorchOptimizer)
    if recipe.lookahead.every:
        build = functools.partial(FlatLookahead, build)
    return build(flat, recipe, total_steps)
