"""The base classes of the optimizers over flat buffers."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch

from fastcifar.kernels import flat_ema, flat_sgd
from fastcifar.optim.flat import FlatGroup, FlatModel, copy_tensors
from fastcifar.optim.schedule import learning_rates, rate_at, set_rates
from fastcifar.recipes import Recipe
from fastcifar.recipes.optimizers import OptimizerConfig

Config = TypeVar("Config", bound=OptimizerConfig)


class FlatOptimizer(ABC, Generic[Config]):
    """An optimizer over the buffers of `flat`, for a training of `total_steps` by `recipe`; `step` is one update.

    `config` is the recipe's section `optimizer`. Gradients are of the loss summed over `recipe.batch_size` images;
    rates are for the mean loss. Step t, from 0, uses rate t of its group, and past the last rate the last. A group that
    trains for fewer steps goes through the whole schedule in these, and is left as it is once it is frozen. Every
    `ema.every` steps, from the first, the averages of weights and running statistics move by 1 - decay ** every.
    `not_capturable` says why a step cannot be captured and replayed; None: it can, and all that changes from step to
    step is on the device, as `count` is.
    """

    not_capturable: str | None = None

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        self.flat, self.recipe, self.total_steps = flat, recipe, total_steps
        self.config = cast(Config, recipe.optimizer)
        self.count = torch.zeros(1, dtype=torch.int64, device=flat.statistics.device)

    def reset(self) -> None:
        """Start again at step 0; called after `FlatModel.load` has reset the buffers."""
        self.count.zero_()

    def anchor(self) -> None:
        """Pull all weights toward those in the buffers from now on, where the recipe's `l2_init` says so."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes while training besides the buffers of `flat`; tensors are not copied."""
        return {"count": self.count, **self._further_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, once `flat` has loaded its own part. Raises UserError for one that does not fit,
        and changes nothing."""
        into = {"count": self.count, **self._further_state()}
        copy_tensors({name: state[name] for name in into if name in state}, into)

    def _further_state(self) -> dict[str, torch.Tensor]:
        """Return what a subclass has besides `count`, by name; not copies."""
        return {}

    def counts(self, state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the number of steps in a `state_dict`, and the tensor that it is copied into, for `copy_tensors`."""
        return {name: value for name, value in state.items() if name == "count"}, {"count": self.count}

    def moments(self, name: str) -> list[torch.Tensor]:
        """Return what the optimizer has gathered of the gradients of the trained parameter `name`, entry by entry, as
        views of its shape, in which 0 is the fresh value; not what has one value for many weights, as a count. None of
        other tensors."""
        return self.flat.part(name, [group.velocity for group in self.flat.groups])

    def averages(self, name: str) -> list[torch.Tensor]:
        """Return the optimizer's own averages of the trained parameter or running statistic `name`, as views of its
        shape."""
        return []

    @abstractmethod
    def step(self) -> None:
        """Update all groups and averages from their gradients."""

    def skip(self) -> None:
        """Leave out a step, such as one whose gradients are not finite: only count it. Not after `step_above`."""
        self.count.add_(1)

    def step_above(self, copy_gradients: Callable[[], None] = lambda: None) -> None:
        """Copy the gradients above the first block into the buffers and update all weights that need no others.
        Called before `step`, in the middle of a divided backward pass (`FlatModel.divide`)."""
        copy_gradients()

    def finish(self) -> None:
        """Do what the last step does besides an update; called where a training ends before it."""

    def learning_rate(self, step: int) -> float:
        """Return the rate at `step`, from 0, of the first group named "weights", or else of the first group."""
        return rate_at(self._rates_of_weights, step)

    def set_rate(self, rate: float, step: int) -> None:
        """Train at `rate` from `step` on, in the place of the schedule's."""
        set_rates(self._rates_of_weights, rate, step)

    @functools.cached_property
    def _rates_of_weights(self) -> list[float]:
        names = [group.name for group in self.flat.groups]
        return self.learning_rates()[names.index("weights") if "weights" in names else 0]

    def learning_rates(self) -> list[list[float]]:
        """Return `rates[group][step]`."""
        steps = [group.steps or self.total_steps for group in self.flat.groups]
        by_steps = {number: learning_rates(self.recipe, number) for number in set(steps)}
        return [by_steps[number] for number in steps]

    def follow(self, group: FlatGroup) -> None:
        """Update the compute copy and the average of `group` from its weights."""
        if group.steps == 0:  # frozen from the start: neither ever changes
            return
        if group.compute is not group.weights:
            group.compute.copy_(group.weights)
        if self.recipe.ema.decay:
            flat_ema(group.weights, group.ema, self.count, **self.average_settings())

    def finish_step(self) -> None:
        """End a step: update the average of the running statistics, and count it."""
        if self.recipe.ema.decay:
            flat_ema(self.flat.statistics, self.flat.statistics_ema, self.count, **self.average_settings())
        self.count.add_(1)

    def average_settings(self) -> dict[str, Any]:
        """Return the kernels' arguments for averages, which move every `ema.every` steps by so many steps' decay."""
        ema = self.recipe.ema
        return {"ema_decay": ema.decay**ema.every, "ema_every": ema.every}


class AroundOptimizer(FlatOptimizer):
    """A flat optimizer around another, `inner`, which makes the steps, and whose rates and gathered gradients are those
    of both."""

    inner: FlatOptimizer

    def anchor(self) -> None:
        self.inner.anchor()

    def moments(self, name: str) -> list[torch.Tensor]:
        return self.inner.moments(name)

    def averages(self, name: str) -> list[torch.Tensor]:
        return self.inner.averages(name)

    def learning_rate(self, step: int) -> float:
        return self.inner.learning_rate(step)

    def set_rate(self, rate: float, step: int) -> None:
        self.inner.set_rate(rate, step)

    def skip(self) -> None:
        self.inner.skip()

    def step_above(self, copy_gradients: Callable[[], None] = lambda: None) -> None:
        self.inner.step_above(copy_gradients)

    def finish(self) -> None:
        self.inner.finish()


class GroupOptimizer(FlatOptimizer[Config]):
    """A flat optimizer that updates one group after another; `rates` holds its rates on the device, float32 `[steps]`
    for each group."""

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int) -> None:
        super().__init__(flat, recipe, total_steps)
        on_device = {"dtype": torch.float32, "device": self.count.device}
        self.rates = [torch.tensor(rates, **on_device) for rates in self.learning_rates()]

    def set_rate(self, rate: float, step: int) -> None:
        super().set_rate(rate, step)
        for rates in self.rates:
            rates[min(step, len(rates) - 1) :] = rate  # in place: captured steps read them there

    @torch.no_grad()
    def step(self) -> None:
        """Update all groups and averages from their gradients."""
        for group, rates in zip(self.flat.groups, self.rates, strict=True):
            if group.trains:
                self.step_group(group, rates)
            else:
                self.follow(group)
        self.finish_step()

    @abstractmethod
    def step_group(self, group: FlatGroup, rates: torch.Tensor) -> None:
        """Update the weights of `group`, their compute copy and their average."""

    def sgd(self, group: FlatGroup, rates: torch.Tensor, run: slice = slice(None), **settings: Any) -> None:
        """Update `group`, or the slice `run` of its buffers, by SGD with Nesterov momentum, compute copy and average in
        the same pass; `settings` are those of `flat_sgd`."""
        compute = None if group.compute is group.weights else group.compute[run]
        ema = group.ema[run] if self.recipe.ema.decay else None
        flat_sgd(
            *(group.weights[run], group.grads[run], group.velocity[run], compute, ema, rates, self.count),
            grad_scale=1 / self.recipe.batch_size,
            **settings,
            **self.average_settings(),
        )
