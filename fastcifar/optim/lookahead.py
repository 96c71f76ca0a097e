"""Lookahead: slow weights follow the fast ones every few steps, and the fast ones go on from there (Zhang 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from fastcifar.optim.flat import FlatModel, foreach_copy
from fastcifar.optim.optimizer import FlatOptimizer
from fastcifar.recipes.averages import EMAConfig, LookaheadConfig
from fastcifar.recipes.recipe import Recipe


class FlatLookahead(FlatOptimizer):
    """Lookahead around another optimizer over flat buffers, of weights and running statistics (airbench96).

    After every `lookahead.every` steps slow <- slow + (1 - d) (fast - slow) and fast <- slow, where after t of T steps
    d = `lookahead.decay` * (t / T) ** `lookahead.decay_power`; after the last step fast <- slow. The moving averages
    are updated after that.
    """

    def __init__(self, inner: Callable[..., FlatOptimizer], flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        super().__init__(flat, recipe, total_steps)
        self.inner = inner(flat, dataclasses.replace(recipe, ema=EMAConfig(decay=0.0)), total_steps)
        self.not_capturable = self.inner.not_capturable
        like = {"dtype": flat.statistics.dtype, "device": flat.statistics.device}
        shares = lookahead_shares(recipe.lookahead, total_steps)
        self._shares = torch.tensor([share or 0.0 for share in shares], **like)
        self._syncs = torch.tensor([share is not None for share in shares], **like)
        self._fast = [*(group.weights for group in flat.groups), flat.statistics]
        self._slow = [torch.empty_like(fast) for fast in self._fast]
        self.reset()

    def reset(self) -> None:
        """Start again at step 0, with the weights in the buffers as slow weights."""
        super().reset()
        self.inner.reset()
        foreach_copy(self._slow, self._fast)

    def learning_rate(self, step: int) -> float:
        return self.inner.learning_rate(step)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": self.inner.state_dict(), "slow": self._slow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.inner.load_state_dict(state["inner"])
        for slow, saved in zip(self._slow, state["slow"], strict=True):
            slow.copy_(saved)

    def skip(self) -> None:
        """Leave out a step, and the move of the slow weights that was due; the last step ends on the slow weights all
        the same."""
        super().skip()
        self.inner.skip()
        if self.count.item() == self.total_steps:
            self.finish()

    def step_above(self, copy_gradients: Callable[[], None] = lambda: None) -> None:
        self.inner.step_above(copy_gradients)

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        step = self.count.clamp(max=len(self._shares) - 1)
        share, syncs = self._shares[step], self._syncs[step]
        if syncs.device.type != "cpu" or syncs.item():  # a GPU is not asked: with 0 neither changes
            for slow, fast in zip(self._slow, self._fast, strict=True):
                slow.lerp_(fast, share)
                fast.lerp_(slow, syncs)
        for group in self.flat.groups:
            self.follow(group)
        self.finish_step()

    @torch.no_grad()
    def finish(self) -> None:
        """End on the slow weights, as after the last step."""
        foreach_copy(self._fast, self._slow)
        for group in self.flat.groups:
            group.compute.copy_(group.weights)


def lookahead_shares(config: LookaheadConfig, total_steps: int) -> list[float | None]:
    """Return by which share of the distance the slow weights move to the fast ones after each step, before the fast
    ones are set to them; None for steps after which neither changes."""
    shares: list[float | None] = [None] * total_steps
    for step in range(config.every, total_steps + 1, config.every):
        shares[step - 1] = 1 - config.decay * (step / total_steps) ** config.decay_power
    if total_steps and shares[-1] is None:
        shares[-1] = 0.0
    return shares
