"""The section `optimizer` of a recipe: the optimizer and its settings, one kind a file.

Learning rates and weight decay are for the *mean* loss over a batch and the coupled form
`g = dloss/dw + weight_decay * w`, `v <- momentum * v - lr * g`. A kind's defaults train DavidNet with batches of 512.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from fastcifar.recipes.declare import Kind, register, setting
from fastcifar.registry import Registry


@dataclass(frozen=True)
class OptimizerConfig(Kind):
    """The configuration of an optimizer. A subclass is a frozen dataclass of settings; see `optimizer`."""

    section: ClassVar[str] = "optimizer"
    builder: ClassVar[str | Callable[..., Any]]
    """Maker of the optimizer; see `optimizer`."""
    needs_filters: ClassVar[bool] = False
    """True if it only works for networks with convolutions."""
    scale_free: ClassVar[bool | None] = None
    """True if its steps at the rate `lr` are the same where all gradients, and with them what `coupled_decay` adds, are
    multiplied by a number; None: not known."""
    coupled_decay: ClassVar[bool] = False
    """True if weight_decay * w is added to the gradient: of gradients divided by n it acts as n times as strong."""

    lr: float = setting(0.1, above=0, with_batch=True)
    """Peak learning rate, for the mean loss."""


OPTIMIZERS: Registry[type[OptimizerConfig]] = Registry("optimizer", __name__)
OptimizerConfig.kinds = OPTIMIZERS

Config = TypeVar("Config", bound=OptimizerConfig)


def optimizer(kind: str, builder: str | Callable[..., Any]) -> Callable[[type[Config]], type[Config]]:
    """Register the decorated configuration, a frozen dataclass, as the optimizer `kind`.

        @fastcifar.optimizer("sign", "my_package.sign:SignSGD")
        @dataclass(frozen=True)
        class SignConfig(fastcifar.OptimizerConfig):
            lr: float = fastcifar.setting(1e-3, above=0)

    builder: a class of `torch.optim.Optimizer`, given the network's parameters and the configuration's fields as
        keyword arguments; a function that makes such an optimizer from the configuration and the parameters; a class of
        `fastcifar.FlatOptimizer`, given flat buffers, the recipe and the number of steps; or the place of one of these,
        "package.module:name", imported when an optimizer is built.

    The recipe's schedule multiplies the rate `lr`. Raises UserError if the name is taken.
    """
    return register(OptimizerConfig, kind, builder=builder)
