"""L2 Init: weights are pulled toward those that a fresh network has (Kumar et al. 2023, arXiv 2308.11958). Over flat
buffers, and around any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastcifar.optim.flat import FlatGroup, FlatModel, copy_tensors, require_tensors
from fastcifar.optim.optimizer import AroundOptimizer, FlatOptimizer
from fastcifar.recipes.recipe import Recipe

_Part = tuple[FlatGroup, torch.Tensor, torch.Tensor, torch.Tensor]
"""A group, and slices of its gradients, its weights and its anchor."""


class FlatL2Init(AroundOptimizer):
    """L2 Init around another optimizer over flat buffers: it makes the steps of the loss L + s / 2 * |w - w0|^2, where
    L is the mean loss, s = `l2_init`, w are all weights that train, and w0 those that `anchor` was last called with, by
    default the first ones.

    So s (w - w0) is added to each gradient of L, before momentum and, with Adam, before the moments. Of gradients in
    half precision it would be lost: build `flat` with `wide_gradients`.
    """

    def __init__(self, inner: Callable[..., FlatOptimizer], flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        super().__init__(flat, recipe, total_steps)
        self.inner = inner(flat, recipe, total_steps)
        self.not_capturable, self.count = self.inner.not_capturable, self.inner.count
        self._factor = recipe.l2_init * recipe.batch_size  # the gradients are of the sum over a batch
        self._anchors = [group.weights.clone() for group in flat.groups]
        self._above, self._below = self._parts(above=True), self._parts(above=False)
        self._pulled_above = False

    def reset(self) -> None:
        """Start again at step 0, even where a step was broken off; the anchors stay."""
        self.inner.reset()
        self._pulled_above = False

    def anchor(self) -> None:
        for anchor, group in zip(self._anchors, self.flat.groups, strict=True):
            anchor.copy_(group.weights)

    def state_dict(self) -> dict[str, Any]:
        return {**self.inner.state_dict(), "anchors": self._anchors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = {f"anchors.{number}": anchor for number, anchor in enumerate(state.get("anchors", ()))}
        into = {f"anchors.{number}": anchor for number, anchor in enumerate(self._anchors)}
        require_tensors(saved, into)
        self.inner.load_state_dict(state)  # may refuse, and then changes nothing
        copy_tensors(saved, into)

    def step_above(self, copy_gradients: Callable[[], None] = lambda: None) -> None:
        def copy_and_pull() -> None:
            copy_gradients()
            self._pull(self._above)

        self.inner.step_above(copy_and_pull)
        self._pulled_above = True

    def step(self) -> None:
        if not self._pulled_above:
            self._pull(self._above)
        self._pulled_above = False
        self._pull(self._below)
        self.inner.step()

    def _parts(self, above: bool) -> list[_Part]:
        """Return the runs of all groups above the first block of a divided backward pass, or the others."""
        return [
            (group, group.grads[run], group.weights[run], anchor[run])
            for group, anchor in zip(self.flat.groups, self._anchors, strict=True)
            for run in group.runs(lambda parameter: self.flat.is_above(parameter) == above)
        ]

    @torch.no_grad()
    def _pull(self, parts: list[_Part]) -> None:
        for group, grads, weights, anchor in parts:
            if group.trains:  # else its gradients are those of an earlier step
                grads.add_(weights - anchor, alpha=self._factor)
