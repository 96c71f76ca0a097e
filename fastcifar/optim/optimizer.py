"""What the optimizers over flat buffers have in common."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch

from fastcifar.kernels import flat_ema, flat_sgd
from fastcifar.optim.flat import FlatGroup, FlatModel
from fastcifar.optim.schedule import at, learning_rates
from fastcifar.recipes import Recipe
from fastcifar.recipes.optimizers import OptimizerConfig

Config = TypeVar("Config", bound=OptimizerConfig)


class FlatOptimizer(ABC, Generic[Config]):
    """An optimizer over the buffers of `flat`, for a training of `total_steps` by `recipe`, whose section `optimizer`
    is its `config`; `step` is one update.

    Gradients are those of the loss summed over `recipe.batch_size` images; rates are written for the mean. Step t, from
    0, uses rate t of the group's, and from the end on the last; a group that trains for fewer steps than all goes
    through the whole schedule in these, and is left as it is once it is frozen. After every `ema.every` steps from the
    first, the averages of weights and running statistics move by 1 - decay ** every. `not_capturable` says why a step
    cannot be captured and replayed; None: it can, since what changes from step to step is on the device, as `count` is.
    """

    not_capturable: str | None = None

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        self.flat, self.recipe, self.total_steps = flat, recipe, total_steps
        self.config = cast(Config, recipe.optimizer)
        self.count = torch.zeros(1, dtype=torch.int64, device=flat.statistics.device)

    def reset(self) -> None:
        """Start again at step 0; called after the buffers are reset by `FlatModel.load`."""
        self.count.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What changes while training besides the buffers of `flat`: tensors themselves, no copies."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, once `flat` has loaded its own part."""
        self.count.copy_(state["count"])

    @abstractmethod
    def step(self) -> None:
        """One update of all groups and averages from their gradients."""

    def skip(self) -> None:
        """Leave a step out, as where its gradients are not finite: it is counted, and changes nothing else. Not after
        `step_above`."""
        self.count.add_(1)

    def step_above(self, copy_gradients: Callable[[], None] = lambda: None) -> None:
        """Called before `step` where the backward pass is divided (`FlatModel.divide`), once the gradients above the
        first block are made: has them copied into the buffers, and makes what of the update can be made then."""
        copy_gradients()

    def finish(self) -> None:
        """Called where a training ends before its last step: whatever that step would do besides an update."""

    def learning_rate(self, step: int) -> float:
        """The rate of the weights, the first group of that name or else the first of all, at `step`, from 0."""
        return at(self._rates_of_weights, step)

    @functools.cached_property
    def _rates_of_weights(self) -> list[float]:
        names = [group.name for group in self.flat.groups]
        return self.learning_rates()[names.index("weights") if "weights" in names else 0]

    def learning_rates(self) -> list[list[float]]:
        """The rates of every step, by group."""
        steps = [group.steps or self.total_steps for group in self.flat.groups]
        by_steps = {number: learning_rates(self.recipe, number) for number in set(steps)}
        return [by_steps[number] for number in steps]

    def follow(self, group: FlatGroup) -> None:
        """Bring the compute copy and the average of `group` up to its weights."""
        if group.compute is not group.weights:
            group.compute.copy_(group.weights)
        if self.recipe.ema.decay:
            flat_ema(group.weights, group.ema, self.count, **self.average_settings())

    def finish_step(self) -> None:
        """The average of the running statistics, and the count: what ends every step."""
        if self.recipe.ema.decay:
            flat_ema(self.flat.statistics, self.flat.statistics_ema, self.count, **self.average_settings())
        self.count.add_(1)

    def average_settings(self) -> dict[str, Any]:
        """The arguments of the kernels that move the averages, every `ema.every` steps by so many steps' decay."""
        ema = self.recipe.ema
        return {"ema_decay": ema.decay**ema.every, "ema_every": ema.every}


class GroupOptimizer(FlatOptimizer[Config]):
    """A flat optimizer that takes one group after another, its rates on the device: `rates`, float32 [steps] each."""

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        super().__init__(flat, recipe, total_steps)
        on_device = {"dtype": torch.float32, "device": self.count.device}
        self.rates = [torch.tensor(rates, **on_device) for rates in self.learning_rates()]

    @torch.no_grad()
    def step(self) -> None:
        """One update of all groups and averages from their gradients."""
        for group, rates in zip(self.flat.groups, self.rates, strict=True):
            if group.trains:
                self.step_group(group, rates)
            else:
                self.follow(group)
        self.finish_step()

    @abstractmethod
    def step_group(self, group: FlatGroup, rates: torch.Tensor) -> None:
        """One update of the weights of `group`, of their compute copy and of their average."""

    def sgd(self, group: FlatGroup, rates: torch.Tensor, run: slice = slice(None), **settings: Any) -> None:
        """SGD with Nesterov momentum for `group`, or a stretch of it, cast and average in the same pass; `settings` are
        `flat_sgd`'s."""
        compute = None if group.compute is group.weights else group.compute[run]
        ema = group.ema[run] if self.recipe.ema.decay else None
        flat_sgd(
            *(group.weights[run], group.grads[run], group.velocity[run], compute, ema, rates, self.count),
            grad_scale=1 / self.recipe.batch_size,
            **settings,
            **self.average_settings(),
        )
