"""The learning rate of every step, computed before the training, so that a captured step reads it from the device; and
torch's ReduceLROnPlateau, which lowers it in its course."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable

import torch

from fastcifar.errors import UserError, did_you_mean
from fastcifar.recipes import Recipe
from fastcifar.recipes.schedule import LENGTHS, length

_NOT_OPTIONS = ("self", "optimizer", "last_epoch", "verbose", "scale_fn", "epochs", "steps_per_epoch")
"""Arguments of torch's classes that a recipe cannot give or does not need."""


def learning_rates(recipe: Recipe, total_steps: int) -> list[float]:
    """Return the rate of every step, for the mean loss.

    The schedule "linear" gives step t, from 0, its value at (t + 1) / `total_steps`; a class of torch's begins with its
    first rate at step 0 and is stepped after every step. So 1 - t / total_steps (airbench) is the class LinearLR with
    start_factor=1, end_factor=0 and total_iters=100%; "linear" from 1 to 0 is one step ahead of it. In a warm-up of w
    steps step t has (t + 1) / (w + 1) of the class's first rate, which is that of step w.
    With ReduceLROnPlateau it is the rate before the first reduction (see `reduce_on_plateau`).
    Raises UserError where the options do not fit the class.
    """
    peak, schedule = recipe.optimizer.lr, recipe.schedule
    if schedule.follows_loss:
        reduce_on_plateau(recipe)
        return [peak] * total_steps
    if schedule.name == "linear":
        return [peak * schedule((step + 1) / total_steps) for step in range(total_steps)]
    cls = getattr(torch.optim.lr_scheduler, schedule.name)
    warmup = min(round(schedule.warmup * total_steps), total_steps - 1)
    options = _options(cls, recipe, total_steps, total_steps - warmup)
    # Classes that cycle the momentum too need one to change; it is not read.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak, momentum=0.9)
    rates = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = cls(optimizer, **options)
            for step in range(total_steps - warmup):
                if step:
                    optimizer.step()
                    scheduler.step()
                rates.append(float(optimizer.param_groups[0]["lr"]))
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"schedule.options do not fit {schedule.name} over {total_steps} steps: {reason}") from None
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise UserError(f"schedule.options lead {schedule.name} to a rate that is negative or not finite")
    return [rates[0] * (step + 1) / (warmup + 1) for step in range(warmup)] + rates


def reduce_on_plateau(recipe: Recipe) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Return torch's ReduceLROnPlateau with the options of `recipe.schedule`, over one weight at `optimizer.lr`. Raises
    UserError where they do not fit: torch itself would find out in the middle of the training."""
    cls = torch.optim.lr_scheduler.ReduceLROnPlateau
    options = _options(cls, recipe, 1, 1)
    for name, value in options.items():
        whole, wanted = name in ("patience", "cooldown"), "min" if name == "mode" else "rel or abs"
        if name in ("mode", "threshold_mode"):
            fits = value in wanted.split(" or ")
        else:
            wanted = f"a {'whole ' * whole}number from 0 up" + ", below 1" * (name == "factor")
            fits = type(value) is int or (type(value) is float and math.isfinite(value) and not whole)
            fits = fits and 0 <= value < (1 if name == "factor" else math.inf)  # pyright: ignore[reportOperatorIssue]
        if not fits:
            raise UserError(f"schedule.options has {name}={value}; allowed: {wanted}")
    return cls(torch.optim.SGD([torch.zeros(1)], lr=recipe.optimizer.lr), **options)  # pyright: ignore[reportArgumentType]


def rate_at(rates: list[float], step: int) -> float:
    """Return the rate at `step`; past the end the last one."""
    return rates[min(step, len(rates) - 1)]


def set_rates(rates: list[float], rate: float, step: int) -> None:
    """Set the rates from `step` on; past the end the last one, as `rate_at` reads it."""
    first = min(step, len(rates) - 1)
    rates[first:] = [rate] * (len(rates) - first)


def _options(cls: type, recipe: Recipe, total_steps: int, own_steps: int) -> dict[str, object]:
    """Return the arguments of a class of torch.optim.lr_scheduler: those in NAME=VALUE words, and those known from the
    recipe. `own_steps`: those after the warm-up."""
    steps = {"epochs": total_steps / recipe.epochs, "steps": 1.0, "%": total_steps / 100}

    def in_steps(text: str) -> int:
        number, unit = length(text)
        return max(1, round(min(number * steps[unit], 1e18)))

    taken = {name: p for name, p in inspect.signature(cls).parameters.items() if name not in _NOT_OPTIONS}
    known = {"T_max": own_steps, "total_steps": own_steps, "max_lr": recipe.optimizer.lr}
    options = {name: value for name, value in known.items() if name in taken}
    for word in recipe.schedule.options:
        name, _, text = word.partition("=")
        if name not in taken:
            hint = did_you_mean(name, taken)
            raise UserError(f"schedule.options has {word!r}{hint}; allowed: {', '.join(taken)}")
        value = _value(text, in_steps if name in LENGTHS else _plain)
        options[name] = value if name != "milestones" or isinstance(value, list) else [value]
    missing = [name for name, p in taken.items() if p.default is p.empty and name not in options]
    if missing:
        raise UserError(f"schedule.options lacks {missing[0]}=..., which {cls.__name__} needs")
    return options


def _value(text: str, read: Callable[[str], object]) -> object:
    """Return what `read` makes of a text, or a list of that with commas."""
    return [read(part) for part in text.split(",") if part] if "," in text else read(text)


def _plain(text: str) -> object:
    """Return a number, true or false, or the word itself."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
