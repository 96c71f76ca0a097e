"""The sections `ema`, `average` and `lookahead` of a recipe: averages of the weights over a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastcifar.errors import UserError
from fastcifar.recipes.declare import Checked, setting, trick

if TYPE_CHECKING:
    from fastcifar.recipes.recipe import Recipe


def _without_average(recipe: Recipe) -> dict[str, float]:
    return {"ema.decay": 0.0, **({"ema.return_every": 0} if recipe.ema.return_every else {})}


@dataclass(frozen=True)
class EMAConfig(Checked):
    """Exponential moving average of all floating state, running statistics too; the average is what is evaluated."""

    section: ClassVar[str] = "ema"

    decay: float = trick(
        0.99,
        off=_without_average,
        at_least=0,
        below=1,
        from_one=True,
        name="ema",
        source="Page 2019",
        why=(
            "At a high rate weights wander about a minimum; their moving average is near it without a low "
            "rate's epochs."
        ),
    )
    """Decay per training step; 0: no average, the last weights are evaluated."""
    every: int = setting(5, at_least=1, unit="steps")
    """Steps between updates, the first after the first step; each update uses decay ** every."""
    return_every: int = trick(
        0,
        off=0,
        at_least=0,
        unit="epochs",
        name="hare-tortoise",
        source="Lee 2024",
        why=(
            "A return to the moving average keeps the fast weights from leaving the region in which a network"
            " is still able to learn."
        ),
    )
    """Set what trains, and the running statistics, to their average after so many epochs and go on from there, with the
    optimizer's state as it is (Hare and Tortoise); not after the last epoch. 0: never."""


@dataclass(frozen=True)
class AverageConfig(Checked):
    """Uniform average of the last weights (Izmailov 2018, SWA), with batch norm's statistics estimated again; this is
    what is evaluated. It cannot be combined with ema."""

    section: ClassVar[str] = "average"

    epochs: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        unit="epochs",
        name="average",
        source="Izmailov 2018",
        why="The mean of weights at the end of several epochs lies in a flatter place than each of them.",
    )
    """Average the weights of so many last epochs, or of the whole training if it is shorter; 0: no average."""
    every: int = setting(5, at_least=1, unit="steps")
    """Steps between the weights that are averaged, counted back from the last step."""
    images: int = setting(5000, at_least=1, unit="images")
    """Estimate the statistics from so many training images, the first ones, unchanged and of full size, in batches of
    batch_size: at least one batch, without a partial last one."""


@dataclass(frozen=True)
class LookaheadConfig(Checked):
    """Lookahead as in airbench96: every few steps slow weights move towards the trained ones, by
    1 - decay * progress ** decay_power of the way, and training goes on from there; it ends on the slow weights."""

    section: ClassVar[str] = "lookahead"

    every: int = trick(
        0,
        off=0,
        at_least=0,
        unit="steps",
        name="lookahead",
        source="Zhang 2019",
        why="The mean of where fast steps lead is closer to the valley's floor than where they are.",
    )
    """Steps between the moves of the slow weights (airbench96: 5); 0: no lookahead."""
    decay: float = setting(0.95**5, at_least=0, below=1, from_one=True)
    """Share of the slow weights that a move keeps at the end of the training (Zhang: 0.5 throughout)."""
    decay_power: float = setting(3.0, at_least=0)
    """The share kept is decay times the progress to this power; 0: constant."""


def refuse_averages(recipe: Recipe) -> None:
    """Raise UserError for averages of which one would undo another, and for a return to one that is not kept."""
    ema = recipe.ema
    if ema.decay and recipe.average.epochs:
        both = f"ema.decay is {ema.decay} and average.epochs is {recipe.average.epochs}"
        raise UserError(f"{both}; allowed: one average of the two, the other 0")
    if ema.return_every and not ema.decay:
        raise UserError(f"ema.return_every is {ema.return_every} and ema.decay is 0; allowed: 0, or an average (0.99)")
    if ema.return_every and recipe.lookahead.every:
        both = f"ema.return_every is {ema.return_every} and lookahead.every is {recipe.lookahead.every}"
        raise UserError(f"{both}; allowed: one of the two, the other 0")
