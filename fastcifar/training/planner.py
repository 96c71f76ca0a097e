"""The plans of a training's epochs: their random choices, and which images they visit."""

from __future__ import annotations

from collections.abc import Callable

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

    def prepare(self, epoch: Epoch) -> Callable[[torch.Tensor | None], EpochPlan]:
        """The plan of `epoch` but for the choice of images: the result, called with their losses, float32 `[N]` (None
        where the recipe selects nothing by them), is the plan."""
        finish = self._loader.prepare_plan(epoch.number, epoch.stage.size, epoch.images)
        return lambda losses: finish(self._selection.choose(losses, epoch.images) if epoch.images else None)
