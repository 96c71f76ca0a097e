"""What of a recipe is a trick that can be switched off, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastcifar.errors import UserError
from fastcifar.recipes.change import change
from fastcifar.recipes.fields import did_you_mean
from fastcifar.recipes.recipe import Recipe

TTA = "tta"
"""The trick whose worth needs no further training: every run says its accuracy without test-time augmentation too."""


def tricks(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The tricks that `recipe` uses, by name, each with the fields that switch it off and their values then.

    One at a time: the rates stay as they are, tuned for all tricks together, and so what is lost without one is at
    least what it is worth.
    """
    off: dict[str, dict[str, Any]] = {**_of_network(recipe), **_of_optimizer(recipe)}
    off |= {
        "label-smoothing": {"label_smoothing": 0.0},
        "crop": {"augment.crop": 0},
        "flip": {"augment.flip": "none"},
        "cutout": {"augment.cutout": 0},
        "jitter": {"augment.brightness": 0.0, "augment.contrast": 0.0},
        "early-crops": {"augment.early_sizes": (), "augment.early_shares": ()},
        "selection": {"select.keep": 1.0},
        "ema": {"ema.decay": 0.0},
        "average": {"average.epochs": 0.0},
        "lookahead": {"lookahead.every": 0},
        TTA: {"evaluate.tta": "none"},
    }
    if recipe.augment.flip == "alternating":
        off["alternating-flip"] = {"augment.flip": "random"}
    return {name: values for name, values in off.items() if change(recipe, values) != recipe}


def choose_tricks(recipe: Recipe, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The tricks of `recipe` that are named in `only`, or all; see `tricks`. Raises UserError for any other name."""
    known = tricks(recipe)
    for name in only:
        if name not in known:
            allowed = ", ".join(known)
            raise UserError(f"{recipe.name} has no trick {name!r}{did_you_mean(name, known)}; allowed: {allowed}")
    return {name: values for name, values in known.items() if not only or name in only}


def _of_network(recipe: Recipe) -> dict[str, dict[str, Any]]:
    if recipe.network == "davidnet":
        return {
            "whitening": {"model.whitening": False},
            "ghost-batch": {"model.ghost_batch": 0},
            "frozen-scale": {"model.freeze_scale": False},
            "activation": {"model.activation": "relu"},
            "final-max-pool": {"model.final_pool": "avg"},
            "residual": {"model.residual": ()},
        }
    if recipe.network == "speedrun":
        scale = recipe.speedrun.logit_scale or 1 / recipe.speedrun.widths[-1]
        return {
            "whitening-bias": {"speedrun.whitening_bias_epochs": 0.0},
            "ghost-batch": {"speedrun.ghost_batch": 0},
            "frozen-scale": {"speedrun.freeze_scale": False},
            "activation": {"speedrun.activation": "relu", "speedrun.whitening_activation": "relu"},
            "final-max-pool": {"speedrun.final_pool": "avg"},
            "residual": {"speedrun.residual": False},
            "dirac": {"speedrun.dirac": False},
            # The head as airbench95 and 96 have it: torch's initial weights, logits divided by 9. A step changes the
            # logits by its rate times the square of their scale: Muon's rate for the head keeps that product.
            "head-scale": {
                "speedrun.head_std": 0.0,
                "speedrun.logit_scale": 1 / 9,
                "optim.head_lr": recipe.optim.head_lr * (9 * scale) ** 2,
            },
        }
    return {}


def _of_optimizer(recipe: Recipe) -> dict[str, dict[str, Any]]:
    name = recipe.optim.name
    off: dict[str, dict[str, Any]] = {"weight-decay": {"optim.weight_decay": 0.0, "optim.filter_decay": 0.0}}
    if name == "muon":
        off["weight-normalisation"] = {"optim.norm_every": 0}
        # SGD as the same network was trained before Muon: airbench94's 11.5 for 1024 (1 + 1 / (1 - momentum)) images
        # and decay 0.0153, in the convention of the mean loss.
        off["muon"] = {
            "optim.name": "sgd",
            "optim.lr": 1.5 * recipe.batch_size / 1024,
            "optim.momentum": 0.85,
            "optim.weight_decay": 1.3e-3,
            "optim.bias_lr_factor": 64.0,
        }
    elif name != "lars":
        off["bias-rate"] = {"optim.bias_lr_factor": 1.0}
    return off
