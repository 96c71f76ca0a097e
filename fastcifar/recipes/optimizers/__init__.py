"""The section `optimizer` of a recipe: which optimizer and its settings, one kind a file.

Learning rates and weight decay are written for the *mean* loss over a batch and the coupled form
`g = dloss/dw + weight_decay * w`, `v <- momentum * v - lr * g`, whatever is summed inside. A kind's defaults train
DavidNet with batches of 512.
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
    """What makes the optimizer; see `optimizer`."""
    needs_filters: ClassVar[bool] = False
    """Whether it is for networks with convolutions alone."""

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

    builder: what makes the optimizer, or where it is ("package.module:name"), imported when one is built: a class of
        `torch.optim.Optimizer`, given the network's parameters and the configuration's fields as keyword arguments; a
        function of the configuration and the parameters that gives such an optimizer; or a class of
        `fastcifar.FlatOptimizer`, given flat buffers, the recipe and the number of steps.

    The recipe's schedule multiplies the rate `lr`. Raises UserError for a name that is taken.
    """
    return register(OptimizerConfig, kind, builder=builder)
