"""Elementwise classes of torch.optim over flat buffers, and optimizers of the user's own over the weights in them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import nn

from fastcifar.errors import UserError
from fastcifar.optim.flat import FlatGroup, FlatModel, require_tensors
from fastcifar.optim.lookahead import Lookahead
from fastcifar.optim.optimizer import FlatOptimizer
from fastcifar.optim.schedule import learning_rates, rate_at, set_rates
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.recipes.optimizers import OptimizerConfig
from fastcifar.registry import resolve

OwnOptimizer = Callable[..., torch.optim.Optimizer]
"""A class of torch's form, or a function of a list of parameters that returns an optimizer."""

_FUSED = ("Adam", "AdamW", "SGD")
"""Classes that take `fused=True`: their step is one kernel, on a CPU too."""
_NOT_FROM_ZERO = ("ax", "step_size")
"""What ASGD and Rprop keep for each weight, and do not begin with at 0."""


class TorchOptimizer(FlatOptimizer[OptimizerConfig]):
    """The class of torch.optim that the kind of `recipe.optimizer` names, or `own`.

    A class of torch.optim gets the master weights of each group as one flat parameter, gradients of the mean loss in
    the master dtype, and the section's fields as arguments (no weight decay where the class has none, as Rprop). Biases
    are as with `FlatSGD`.

    `own` gets a parameter for each trained one of the network, in their order and shapes, on the same weights and
    gradients. If it is the section's builder it gets all fields of `recipe.optimizer`; any other class gets `lr`, and
    `momentum` and `weight_decay` where it takes them; a function gets no more. The schedule multiplies the rate that
    each param group begins with. Raises UserError where `own` gives no optimizer of these parameters.
    """

    not_capturable = "an optimizer of torch's counts its steps on the host"

    def __init__(self, flat: FlatModel, recipe: Recipe, total_steps: int, own: OwnOptimizer | None = None) -> None:
        super().__init__(flat, recipe, total_steps)
        self._own = own
        self._grads = [torch.zeros_like(group.weights) for group in flat.groups]
        self._trained = [self._pairs(group, grads) for group, grads in zip(flat.groups, self._grads, strict=True)]
        self.reset()
        self._warn_of_another_rate()

    def reset(self) -> None:
        """Start again at step 0 with no state; `FlatModel.load` resets the weights."""
        super().reset()
        self._step = 0
        if self._own is None:
            self._optimizer = self._build()
            factors = [self._factor(group.name) for group in self.flat.groups]
            self._rates = list(zip(self.learning_rates(), factors, strict=True))
        else:
            self._optimizer = self._build_own(self._own)
            rates, peak = learning_rates(self.recipe, self.total_steps), self.config.lr
            self._rates = [(rates, float(group["lr"]) / peak) for group in self._optimizer.param_groups]

    def learning_rate(self, step: int) -> float:
        """Return the rate of the weights at `step`, from 0; with `own` that of its first param group."""
        if self._own is None:
            return super().learning_rate(step)
        rates, factor = self._rates[0]
        return rate_at(rates, step) * factor

    def set_rate(self, rate: float, step: int) -> None:
        super().set_rate(rate, step)
        for rates, _ in self._rates:
            set_rates(rates, rate, step)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "step": self._step, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        require_tensors(*self.counts(state))
        step, inside = state.get("step"), state.get("optimizer")
        if not (isinstance(step, int) and isinstance(inside, dict) and inside.keys() >= {"state", "param_groups"}):
            raise UserError("the training's state has no state of an optimizer of torch's; allowed: a step and a state")
        self._require_shapes(inside["state"])
        try:
            self._optimizer.load_state_dict(copy.deepcopy(inside))  # torch keeps the tensors it is given
        except ValueError as error:  # other param groups: nothing is changed
            raise UserError(f"the state of {type(self._optimizer).__name__} does not fit: {error}") from None
        super().load_state_dict(state)
        self._step = step

    def _require_shapes(self, state: dict[int, dict[str, Any]]) -> None:
        """Raise UserError where a class of torch.optim would get a tensor that is not as its group's weights."""
        for number, group in enumerate(self.flat.groups if self._own is None else ()):
            for name, value in state.get(number, {}).items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != group.weights.shape:
                    given, needed = list(value.shape), list(group.weights.shape)
                    raise UserError(f"{name} of the training's state is {given}; allowed: {needed}")

    @torch.no_grad()
    def step(self) -> None:
        """Update all groups and averages from their gradients."""
        for settings, (rates, factor) in zip(self._optimizer.param_groups, self._rates, strict=True):
            settings["lr"] = rate_at(rates, self._step) * factor
        for group, grads, trained in zip(self.flat.groups, self._grads, self._trained, strict=True):
            if group.trains:
                grads.copy_(group.grads).div_(self.recipe.batch_size)
            for parameter, grad in trained:
                parameter.grad = grad if group.trains else None  # torch's optimizers skip None
        self._optimizer.step()
        self._step += 1
        if self._step == self.total_steps:
            self._end()
        for group in self.flat.groups:
            self.follow(group)
        self.finish_step()

    @torch.no_grad()
    def finish(self) -> None:
        self._end()
        for group in self.flat.groups:
            group.compute.copy_(group.weights)

    def _end(self) -> None:
        """End on the weights that are evaluated, where an optimizer of the user's own trains others."""
        if isinstance(self._optimizer, Lookahead):
            self._optimizer.finish()

    def moments(self, name: str) -> list[torch.Tensor]:
        parameter, found = dict(self.flat.model.named_parameters()).get(name), []
        for group, trained in zip(self.flat.groups, self._trained, strict=True):
            place = next((at for at, own in enumerate(group.parameters) if own is parameter), None)
            if place is None:
                continue
            weights, _ = trained[0 if self._own is None else place]
            for kind, value in self._optimizer.state.get(weights, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == weights.shape and kind not in _NOT_FROM_ZERO:
                    found.append(group.views(value)[place] if self._own is None else value)
        return found

    def skip(self) -> None:
        super().skip()
        self._step += 1
        if self._step == self.total_steps:
            self.finish()

    def _pairs(self, group: FlatGroup, grads: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the weights of `group` that the optimizer gets, each with its part of `grads`."""
        if self._own is None:
            return [(group.weights, grads)]
        weights = map(nn.Parameter, group.views(group.weights))
        return list(zip(weights, group.views(grads), strict=True))

    def _build(self) -> torch.optim.Optimizer:
        kind = self.config.kind
        cls = getattr(torch.optim, kind)
        settings = self._fields(inspect.signature(cls).parameters)
        groups = []
        for group in self.flat.groups:
            groups.append({"params": [group.weights]})
            if "weight_decay" in settings:
                groups[-1]["weight_decay"] = settings["weight_decay"] / self._factor(group.name)
        if kind in _FUSED:
            settings["fused"] = True
        return cls(groups, **settings)

    def _build_own(self, own: OwnOptimizer) -> torch.optim.Optimizer:
        name, settings = getattr(own, "__name__", type(own).__name__), {}
        if not callable(own):
            raise UserError(
                f"the optimizer is of type {name}; allowed: a class of torch's form, or a function of weights"
            )
        if isinstance(own, type) and issubclass(own, torch.optim.Optimizer):
            if own is resolve(self.config.builder):
                settings = self._fields()
            else:
                taken = inspect.signature(own).parameters
                settings = self._fields({"lr", *({"momentum", "weight_decay"} & taken.keys())})
        ours = {
            theirs: parameter
            for group, trained in zip(self.flat.groups, self._trained, strict=True)
            for theirs, (parameter, _) in zip(group.parameters, trained, strict=True)
        }
        parameters = [ours[parameter] for parameter in self.flat.model.parameters() if parameter in ours]
        try:
            with torch.enable_grad():
                optimizer = own(parameters, **settings)
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the optimizer {name} does not take the network's parameters: {reason}") from error
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(f"the optimizer {name} gives {type(optimizer).__name__}; allowed: a torch.optim.Optimizer")
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise UserError(f"the optimizer {name} asks for the loss again; allowed: one whose step needs no closure")
        for group in optimizer.param_groups:
            if not set(group["params"]) <= set(parameters):
                raise UserError(f"the optimizer {name} has parameters of its own; allowed: those that it is given")
            if "lr" not in group:
                raise UserError(f"the optimizer {name} has no lr for a schedule; allowed: one in every param group")
        return optimizer

    def _warn_of_another_rate(self) -> None:
        """Warn where `own` is a class that would train at the rate of another optimizer: one that the recipe's kind has
        by default or in a named recipe. Any other was given for this training."""
        own, config = self._own, self.config
        if not isinstance(own, type) or own is resolve(config.builder):
            return
        named = [recipe.optimizer for recipe in RECIPES.values()]
        known = {type(config)().lr, *(each.lr for each in named if each.kind == config.kind)}
        parameter = inspect.signature(own).parameters.get("lr")
        usual = parameter.default if parameter and isinstance(parameter.default, float) else None
        fits = usual is not None and usual / 10 <= config.lr <= usual * 10
        fits |= config.kind.lower() == "sgd" and issubclass(own, torch.optim.SGD)  # its own rate is no measure
        if config.lr in known and not fits:
            default = "" if usual is None else f", by default {usual}"
            warnings.warn(
                f"{own.__name__} trains at the rate {config.lr}, which the recipe has for {config.kind}; optimizer.lr "
                f"sets another{default}",
                stacklevel=2,
            )

    def _fields(self, names: Container[str] | None = None) -> dict[str, Any]:
        """Return the fields of the recipe's section, without `kind`; only those in `names` unless that is None."""
        fields = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        return {name: fields[name] for name in fields if name != "kind" and (names is None or name in names)}

    def _factor(self, group: str) -> float:
        return self._fields()["bias_lr_factor"] if group == "biases" else 1.0
