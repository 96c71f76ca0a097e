"""A loss that is NaN or infinite: the likely causes, by what is known of the training, and what to change, to what."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import torch

from fastcifar.errors import NonFiniteLoss
from fastcifar.host import is_ours
from fastcifar.registry import resolve

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

_LOWER = 10
"""A learning rate that is too high is divided by this in what is advised."""
_GROWN = 2
"""A loss so many times the first one grew, as by a learning rate that is too high, before it was no number."""
_EARLY = 2
"""So few updates suffice, at a learning rate that is far too high, without a loss that grew before."""
_HUGE = 1000
"""A first loss, in nats, for which no update is to blame: a network that knows nothing has that of a guess, 2.3."""


def nonfinite_loss(what: str, trainer: Trainer, step: int | None = None) -> NonFiniteLoss:
    """Return the error for a loss that is NaN or infinite: `what` says which and where.

    step: its step, from 0; None: a later one than all, as of the trained network.
    """
    state, history = trainer.state, trainer.state.history
    before = None if not step else history.mean_loss(step - 1)
    first = history.mean_loss(0)
    facts = [] if before is None else [f"after {before:.4g} at the step before"]
    own, width = _own_parts(trainer), _number_format(trainer)
    if step == 0 or (first is not None and first > _HUGE):  # with the weights that the training began with
        causes = [*own, *_start(trainer), *width] or [_IMAGES]
    else:
        rate = _learning_rate(trainer, (state.step if step is None else step) - 1)
        has_grown = before is not None and first is not None and before > _GROWN * first
        is_sudden = step is not None and step > _EARLY and not has_grown
        causes = [*own, rate, *width] if is_sudden else [rate, *width, *own]
    said = ", or ".join(cause for cause, _ in causes)
    changes = ", ".join(dict.fromkeys(change for _, change in causes))
    return NonFiniteLoss(f"{', '.join([what, *facts])}: most likely {said}; allowed: {changes}")


_IMAGES = (
    "normalize.std or the network does not fit the images",
    "normalize.mean and normalize.std of the training images, another network",
)


def _learning_rate(trainer: Trainer, step: int) -> tuple[str, str]:
    """Return what the rate of the update of `step` may have done, and the rates to try."""
    optimizer, config = trainer.state.optimizer, trainer.recipe.optimizer
    own = getattr(optimizer, "_own", None)
    if own is not None and not inspect.isclass(own):  # a function, which chooses its rates itself
        rate = optimizer.learning_rate(max(step, 0))
        return f"the learning rate of {_name(own)}, {rate:g}, is too high", f"{rate / _LOWER:g} there"
    rates = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    lower = [f"optimizer.{name} {rate / _LOWER:g}" for name, rate in rates.items() if f"_{name}".endswith("_lr")]
    return f"optimizer.lr {config.lr:g} is too high", " with ".join(lower)


def _number_format(trainer: Trainer) -> list[tuple[str, str]]:
    if trainer.dtype != torch.float16:
        return []
    dynamic = trainer.recipe.loss_scaling.dynamic
    return [("float16 too narrow", "dtype bfloat16" + ("" if dynamic else ", loss_scaling.dynamic true"))]


def _start(trainer: Trainer) -> list[tuple[str, str]]:
    """Return the weights that the training began with, if it was given any."""
    source = trainer.state.init.get("source")
    return [] if source is None else [(f"the weights in {source} are too large", "other weights, a cold start")]


def _own_parts(trainer: Trainer) -> list[tuple[str, str]]:
    """Return the parts that are not this library's, which may give NaN, and what they should give."""
    recipe = trainer.recipe
    given: dict[str, Any] = {"loss": trainer.own_loss, "augment": trainer.own_augment, "model": trainer.own_model}
    parts = [f"the {word} {_name(part)}" for word, part in given.items() if part is not None]
    parts += [f"transforms.{each.kind}" for each in recipe.transforms if not is_ours(resolve(type(each).function))]
    if trainer.own_model is None and not is_ours(resolve(recipe.network.builder)):
        parts.append(f"the network {recipe.network.kind}")
    return [(f"{part} gives what is not finite", f"{part} with finite values") for part in parts]


def _name(part: Any) -> str:
    return getattr(part, "__qualname__", type(part).__qualname__).rpartition("<locals>.")[2]
