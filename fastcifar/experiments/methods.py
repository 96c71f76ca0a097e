"""`METHODS`: the ways to go on from an earlier training's weights, from Ash and Adams 2020 on, each in a few lines.

Some change the weights that a training begins with, others the training itself. Those have a cold start of their own
beside the plain one: what helps every training is no answer to the question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.experiments.warm_starts import COLD
from fastcifar.recipes import Recipe, change
from fastcifar.recipes.declare import checked, declaration, type_hints
from fastcifar.recipes.layers import refuse_unknown
from fastcifar.recipes.text import field_hints, read_changes, read_value
from fastcifar.start import Dash, Fire, FromSource, ShrinkPerturb, Start, WarmStart

if TYPE_CHECKING:
    from fastcifar.models import Network


Changes = Mapping[str, Any]
"""New values of a recipe's fields by dotted name."""


@dataclass(frozen=True)
class Round:
    """A round of trainings, as far as settings go by it."""

    steps: int
    """Of an epoch."""
    is_open: bool
    """It ends at an accuracy, some epochs on, not after the recipe's epochs."""


@dataclass(frozen=True)
class Method:
    """A way to begin with given weights, and to train from there."""

    source: str
    """Its paper, with the year."""
    start: type[FromSource] = WarmStart
    """How the training begins."""
    options: Mapping[str, Any] | Callable[[Sequence[str], Mapping[str, Any]], Mapping[str, Any]] = dataclasses.field(
        default_factory=dict
    )
    """The options of that; or a function of the names of the network's layers that train, in their order, and of the
    factors `shrink` and `perturb` that the experiment was given."""
    changes: Changes | Callable[[Recipe, Round], Changes] = dataclasses.field(default_factory=dict)
    """What it changes in the recipe, in all rounds; or a function of the recipe and of the round."""
    anchored: bool = False
    """Later rounds take their fresh weights from the seed of the first one, whose initial weights these are."""
    needs: Literal["", "units", "statistics", "one output"] = ""
    """What a network must have: units that are known, running statistics, or one output that the loss is of."""

    def begin(self, layers: Sequence[str], factors: Mapping[str, Any], seed: int) -> Callable[[Path], Start]:
        """Return the start from a file of weights. `layers` and `factors` are as in `options`; `seed` is that of the
        first round."""
        anchor = {"seed": seed} if self.anchored else {}
        return partial(self.start, **_given(self.options, layers, factors), **anchor)

    def recipe(self, recipe: Recipe, round: Round) -> Recipe:
        """Return the recipe of a round."""
        return change(recipe, _given(self.changes, recipe, round))

    def refuse(self, name: str, network: Network, layers: Sequence[str], factors: Mapping[str, Any]) -> None:
        """Raise UserError where `network` lacks what it needs, or layers that its start names."""
        from fastcifar.training.initialize import reset_names

        options = _given(self.options, layers, factors)
        reset_names(network, [word for word in options.get("reset", ()) if word != "head"])
        refuse_unknown((word.rpartition(":")[0] for word in options.get("layers", ())), layers, f"{name}:layers")
        statistics = reset_names(network, ["statistics"])
        found = {"": True, "units": network.units(), "statistics": statistics, "one output": network.outputs == 1}
        if not found[self.needs]:
            said = f"{name} needs {self.needs}, which {type(network).__name__} has not"
            raise UserError(f"{said}; allowed: another network, or --only with others")


def _given(options: Mapping[str, Any] | Callable[..., Mapping[str, Any]], *facts: object) -> Mapping[str, Any]:
    """Return `options`, or what they are for `facts` where they are a function of these."""
    return options(*facts) if callable(options) else options


def _graded(layers: Sequence[str], factors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Shrink and perturb the first layer by 1 and 0, the last by the experiment's factors, and those between them by
    what lies between."""
    words = []
    for place, name in enumerate(layers):
        share = place / max(1, len(layers) - 1)
        shrink, perturb = 1 - share * (1 - factors["shrink"]), share * factors["perturb"]
        words.append(f"{name}:shrink={shrink:.4g},perturb={perturb:.4g}")
    return {**factors, "layers": tuple(words)}


def _hare_and_tortoise(recipe: Recipe, round: Round) -> Changes:
    """Return after a tenth of the epochs, at most 10, to an average over half of that time, as Lee et al. do after 10;
    where the number of epochs is not known, after 2."""
    every = 2 if round.is_open else max(1, min(10, int(recipe.epochs / 10 + 0.5)))
    return {"ema.decay": 1 - 1 / (1 + every * round.steps / 2), "ema.every": 1, "ema.return_every": every}


def _continual_backprop(recipe: Recipe, round: Round) -> Changes:
    """Replace a quarter of a layer's units in the whole training, be it as short as here: at Dohare's rates, for
    millions of steps, it would be none."""
    steps = max(4.0, round.steps * recipe.epochs / (4 if round.is_open else 1))
    rate, maturity = min(1.0, 0.25 / steps), max(1, min(100, int(steps / 4)))
    return {"continual_backprop.rate": rate, "continual_backprop.maturity": maturity}


def _layer_norm(recipe: Recipe, round: Round) -> Changes:
    field = "norm_kind" if hasattr(recipe.network, "norm_kind") else "norm"
    decay = max(1e-4, getattr(recipe.optimizer, "weight_decay", 0.0))
    return {f"network.{field}": "layer", "optimizer.weight_decay": decay}


METHODS = {
    "warm": Method("Ash and Adams 2020"),
    "shrink-perturb": Method("Ash and Adams 2020", ShrinkPerturb, lambda layers, factors: factors),
    "shrink-perturb-graded": Method("Ash and Adams 2020, less in earlier layers", ShrinkPerturb, _graded),
    "fire": Method("Han et al. 2026", Fire),
    "dash": Method("Shin et al. 2024", Dash, needs="one output"),
    "reset-head": Method("Nikishin et al. 2022", options={"reset": ("head",)}),
    "reset-half": Method("Zhou et al. 2022", options=lambda layers, factors: {"reset": (f"last-{len(layers) // 2}",)}),
    "reset-statistics": Method("-", options={"reset": ("statistics",)}, needs="statistics"),
    "hare-tortoise": Method("Lee et al. 2024", changes=_hare_and_tortoise),
    "l2-init": Method("Kumar et al. 2023", changes={"l2_init": 1e-3}, anchored=True),
    "redo": Method("Sokar et al. 2023", changes={"redo.every": 1}, needs="units"),
    "continual-backprop": Method("Dohare et al. 2024", changes=_continual_backprop, needs="units"),
    "layer-norm-decay": Method("Lyle et al. 2024", changes=_layer_norm),
}
"""The methods by the names of their arms, with the settings of their papers where these do not depend on the size."""


def chosen(only: tuple[str, ...], settings: tuple[str, ...]) -> dict[str, Method]:
    """Return the methods in `only`, all where that is empty, in the order of `METHODS`, changed as the words of
    `settings` say: METHOD:FIELD=VALUE, a field of its start or, by dotted name, of the recipe. Raises UserError for
    unknown names and other words."""
    for name in only:
        if name not in METHODS:
            raise UserError(f"only has {brief(name)}{did_you_mean(name, METHODS)}; allowed: {', '.join(METHODS)}")
    methods = {name: method for name, method in METHODS.items() if name in (only or METHODS)}
    for word in settings:
        name, colon, text = word.partition(":")
        if not colon or name not in METHODS or "=" not in text:
            allowed = "METHOD:FIELD=VALUE, as in shrink-perturb:shrink=0.2"
            near = "" if name in METHODS else did_you_mean(name, METHODS)
            raise UserError(f"method_settings has {brief(word)}{near}; allowed: {allowed}")
        if name in methods:
            methods[name] = _changed(methods[name], text, name)
    return methods


def _changed(method: Method, text: str, name: str) -> Method:
    """Return `method` with one more field, of its start or of the recipe, as "shrink=0.2" says."""
    path, _, value = text.partition("=")
    fields = {field.name: field for field in dataclasses.fields(method.start) if field.name != "source"}
    if path in fields:
        hint, options = type_hints(method.start)[path], method.options
        given = checked(f"{name}:{path}", read_value(value, hint), hint, declaration(fields[path]))
        return dataclasses.replace(method, options=lambda *facts: {**_given(options, *facts), path: given})
    if "." not in path and path not in field_hints(Recipe()):
        allowed = f"{', '.join(fields)}, or a field of the recipe, as in {name}:epochs=5"
        raise UserError(f"{name} has no setting {brief(path)}{did_you_mean(path, fields)}; allowed: {allowed}")
    changes, further = method.changes, read_changes([text])
    return dataclasses.replace(method, changes=lambda *facts: {**_given(changes, *facts), **further})


def cold_of(method: str) -> str:
    """Return the arm of the cold start that is trained as `method` trains."""
    return f"{COLD}-{method}"


def key_of(condition: str, protocol: str, size: int, arm: str) -> str:
    """Return the arm of a round of so many images."""
    return f"{condition}/{protocol}/{size}/{arm}"
