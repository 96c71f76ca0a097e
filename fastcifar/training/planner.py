"""The plans of a training's epochs: their random choices, and which images they visit."""

from __future__ import annotations

import torch

from fastcifar.data import EpochPlan, Loader, Selection, Split
from fastcifar.recipes import Recipe
from fastcifar.training.timeline import Epoch


class Planner:
    """Draws the plans of one training of `recipe` on `split` from `seed`, epoch after epoch. Nothing waits for the
    device."""

    def __init__(self, recipe: Recipe, split: Split, seed: int) -> None:
        self._loader = Loader(split, recipe.batch_size, recipe.augment, seed)
        self._selection = Selection(len(split), recipe.select.max_skips, split.device)

    def plan(self, epoch: Epoch, losses: torch.Tensor | None) -> EpochPlan:
        """Draw the plan of `epoch`; `losses` of the images, float32 `[N]`, say which it visits (None where the recipe
        selects nothing by them)."""
        visited = self._selection.choose(losses, epoch.images) if epoch.images else None
        return self._loader.plan(epoch.number, epoch.stage.size, visited)
