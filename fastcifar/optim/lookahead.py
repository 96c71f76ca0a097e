"""Lookahead: slow weights follow the fast ones every few steps, and the fast ones go on from there (Zhang 2019). Over
flat buffers, and around any optimizer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from fastcifar.errors import UserError
from fastcifar.optim.flat import FlatModel, copy_tensors, foreach_copy, require_tensors
from fastcifar.optim.optimizer import AroundOptimizer, FlatOptimizer
from fastcifar.recipes.averages import EMAConfig, LookaheadConfig
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.recipes.recipe import Recipe


class FlatLookahead(AroundOptimizer):
    """Lookahead around another optimizer over flat buffers, of weights and running statistics (airbench96).

    After every `lookahead.every` steps slow <- slow + (1 - d) (fast - slow) and fast <- slow, where after t of T steps
    d = `lookahead.decay` * (t / T) ** `lookahead.decay_power`; after the last step fast <- slow. The moving averages
    are updated after that. What was frozen since the last of these steps still goes to its slow weights at the next, as
    in airbench96, and stays there.
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

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": self.inner.state_dict(), "slow": self._slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved, into = self.counts(state)
        saved |= {f"slow.{number}": slow for number, slow in enumerate(state.get("slow", ()))}
        into |= {f"slow.{number}": slow for number, slow in enumerate(self._slow)}
        require_tensors(saved, into)
        self.inner.load_state_dict(state.get("inner", {}))  # may refuse, and then changes nothing
        copy_tensors(saved, into)

    def averages(self, name: str) -> list[torch.Tensor]:
        return self.flat.part(name, self._slow[:-1], self._slow[-1])

    def skip(self) -> None:
        """Leave out a step, and the move of the slow weights that was due; the last step ends on the slow weights all
        the same."""
        super().skip()
        self.count.add_(1)
        if self.count.item() == self.total_steps:
            self.finish()

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
        """End on the slow weights, as after the last step, with the moving averages as they are."""
        foreach_copy(self._fast, self._slow)
        for group in self.flat.groups:
            group.compute.copy_(group.weights)


class Lookahead(torch.optim.Optimizer):
    """Lookahead around another optimizer: after every `every` steps slow <- slow + (1 - decay) (fast - slow) and
    fast <- slow, where slow are the weights that the first of these steps began with.

    optimizer: any of torch's form. It makes the steps, and its param groups, defaults and state are those of both: a
        scheduler takes either.
    every: steps between the moves of the slow weights.
    decay: share of the slow weights that a move keeps (Zhang: 0.5).

    A `state_dict` is the optimizer's with one part more, "lookahead", which the optimizer alone passes over. Unlike in
    a recipe the share is constant, and running statistics are not averaged. Steps are counted on the host. Raises
    UserError for a setting out of range.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, every: int = 5, decay: float = 0.5) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, Lookahead):
            kind = getattr(optimizer, "__name__", type(optimizer).__name__)
            raise UserError(f"the optimizer of Lookahead is {kind}; allowed: another object of torch.optim.Optimizer")
        self.optimizer = optimizer
        self.every, self.decay = _settings(every, decay)
        self._steps = 0
        """Steps since slow and fast weights were the same."""
        self._slow: dict[torch.Tensor, torch.Tensor] = {}
        """Slow weights by parameter, for those that have been in a step."""
        super().__setstate__({})  # hooks of its own; torch's __init__ would make param groups of its own too

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    @property
    def state(self) -> Any:
        return self.optimizer.state

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("optimizer", "every", "decay", "_steps", "_slow")}

    def __repr__(self) -> str:
        return f"{type(self).__name__} (\nevery: {self.every}\ndecay: {self.decay}\n{self.optimizer!r}\n)"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the optimizer; their slow weights begin with the next step."""
        self.optimizer.add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step of the optimizer, and after every so many the move; return what the optimizer's step returns."""
        with torch.no_grad():
            for parameter in self._parameters():
                if parameter not in self._slow:
                    self._slow[parameter] = parameter.detach().clone()
                elif not self._steps:  # weights may have been loaded since
                    self._slow[parameter].copy_(parameter)
        loss = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self._steps += 1
        if self._steps >= self.every:
            with torch.no_grad():
                for parameter in self._parameters():
                    parameter.copy_(self._slow[parameter].lerp_(parameter, 1 - self.decay))
            self._steps = 0
        return loss

    @torch.no_grad()
    def finish(self) -> None:
        """Set the weights to the slow ones, which are what is evaluated; call it after the last step."""
        for parameter in self._parameters() if self._steps else ():
            parameter.copy_(self._slow.get(parameter, parameter))
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and Lookahead's own; tensors are not copied, as with torch's."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        slow = [self._slow.get(parameter) for parameter in self._parameters()]
        own = {"every": self.every, "decay": self.decay, "steps": self._steps, "slow": slow}
        state = {**self.optimizer.state_dict(), "lookahead": own}
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a copy of `state_dict`. Raises UserError for one that is not Lookahead's or has other shapes, and
        what the optimizer raises; changes nothing then."""
        state = copy.deepcopy(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state)
            state = state if changed is None else changed
        own, parameters = state.get("lookahead"), self._parameters()
        parts = ("every", "decay", "steps", "slow")
        if not isinstance(own, dict) or not own.keys() >= {*parts}:
            what = f"the state has no part 'lookahead' of {', '.join(parts)}"
            raise UserError(f"{what}; allowed: a state_dict of Lookahead")
        every, decay = _settings(own["every"], own["decay"])
        steps = checked("steps of Lookahead", own["steps"], int, Declaration(at_least=0))
        if not isinstance(own["slow"], list) or len(own["slow"]) != len(parameters):
            count = len(own["slow"]) if isinstance(own["slow"], list) else own["slow"]
            raise UserError(f"the state has slow weights of {count} parameters; allowed: {len(parameters)}")
        slow = {}
        for parameter, kept in zip(parameters, own["slow"], strict=True):
            if kept is None:
                continue
            if not isinstance(kept, torch.Tensor) or kept.shape != parameter.shape:
                given = list(kept.shape) if isinstance(kept, torch.Tensor) else repr(kept)
                needed = list(parameter.shape)
                raise UserError(f"slow weights of the state are {given}; allowed: {needed}, as their parameter")
            slow[parameter] = kept.to(parameter)
        self.optimizer.load_state_dict({name: value for name, value in state.items() if name != "lookahead"})
        self.every, self.decay, self._steps, self._slow = every, decay, steps, slow
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _settings(every: int, decay: float) -> tuple[int, float]:
    """Return the settings as Python's numbers. Raises UserError for one out of range."""
    every = checked("every of Lookahead", every, int, Declaration(at_least=1, unit="steps"))
    return every, checked("decay of Lookahead", decay, float, Declaration(at_least=0, below=1))


def lookahead_shares(config: LookaheadConfig, total_steps: int) -> list[float | None]:
    """Return by which share of the distance the slow weights move to the fast ones after each step, before the fast
    ones are set to them; None for steps after which neither changes."""
    shares: list[float | None] = [None] * total_steps
    for step in range(config.every, total_steps + 1, config.every):
        shares[step - 1] = 1 - config.decay * (step / total_steps) ** config.decay_power
    if total_steps and shares[-1] is None:
        shares[-1] = 0.0
    return shares
