"""Muon for filters, SGD for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fastcifar.recipes.declare import Off, setting, trick
from fastcifar.recipes.optimizers import OptimizerConfig, optimizer

if TYPE_CHECKING:
    from fastcifar.recipes.recipe import Recipe

_BATCH = 512


def _sgd_of_airbench94(recipe: Recipe) -> Mapping[str, Any]:
    """Return SGD as in airbench94, which trains the same network: its rate of 11.5 for 1024 (1 + 1 / (1 - momentum))
    images and decay of 0.0153, converted to the mean loss."""
    return {
        "optimizer": "sgd",
        "optimizer.lr": 1.5 * recipe.batch_size / 1024,
        "optimizer.momentum": 0.85,
        "optimizer.weight_decay": 1.3e-3,
        "optimizer.bias_lr_factor": 64.0,
    }


@optimizer("muon", "fastcifar.optim.muon:FlatMuon")
@dataclass(frozen=True)
class MuonConfig(OptimizerConfig):
    """Orthogonalized updates for convolution filters (Jordan 2024, airbench94_muon), SGD with Nesterov momentum for the
    rest. Rates are for the mean loss; airbench's, for the summed one, are given per image of the batch."""

    needs_filters: ClassVar[bool] = True
    scale_free: ClassVar[bool | None] = True
    off: ClassVar[Off | None] = staticmethod(_sgd_of_airbench94)
    source: ClassVar[str] = "Jordan 2024"
    why: ClassVar[str] = (
        "A filter bank's update is made nearly orthogonal, so that all its directions move by as much, those with "
        "small gradients too: fewer steps to the same loss."
    )

    lr: float = setting(0.16, above=0)
    """Peak learning rate of the filters, whatever the loss (airbench94_muon: 0.24)."""
    momentum: float = setting(0.6, at_least=0, below=1, from_one=True)
    """Nesterov momentum of the filters; 0: none."""
    weight_decay: float = trick(2e-6 * _BATCH, off=0.0, at_least=0, with_batch=True, source="Jordan 2024")
    """Share of w that a step at the peak rate removes, before momentum, from all but the filters: weight_decay / rate *
    w is added to the gradient (airbench94_muon: 2e-6 per image of the batch)."""
    bias_lr: float = setting(0.053 * _BATCH, at_least=1e-30, with_batch=True)
    """Peak rate of biases and scales, for the mean loss (airbench94_muon: 0.053 per image of the batch)."""
    head_lr: float = setting(1.0, at_least=1e-30, with_batch=True)
    """Peak rate of the classifier, for the mean loss. A smaller scale of the logits needs a larger one, by its inverse
    square: 1 for DavidNet's scale of 1/16, 0.67 per image of the batch for airbench94_muon's of 1/256."""
    sgd_momentum: float = setting(0.85, at_least=0, below=1, from_one=True)
    """Nesterov momentum of the weights that train with SGD."""
    ns_steps: int = setting(3, at_least=1, at_most=100, unit="steps")
    """Newton-Schulz steps that orthogonalize an update."""
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    """a, b and c of those steps, a s + b s^3 + c s^5 for each singular value s (hiverge 2025: 3.4576, -4.7391,
    2.0843)."""
    polar_express: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        below=1,
        source="Amsel et al. 2025",
        why=(
            "Other coefficients at each step of the iteration bring the update closer to orthogonal in as many steps."
        ),
    )
    """The least singular value, of a matrix of norm 1, that the coefficients of each step are optimal for, in place of
    ns_coefficients (Amsel: 0.001); 0: off."""
    row_momentum: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        below=1,
        from_one=True,
        name="normuon",
        source="Li et al. 2025",
        why=(
            "Orthogonal updates still differ from row to row; a running mean of each row's size evens out how"
            " far neurons move."
        ),
    )
    """Divide each output channel's update, after Newton-Schulz, by the root of the running mean, with this momentum, of
    its mean square, and keep the norm of the whole (Li: 0.95); 0: off."""
    norm_every: int = trick(
        1,
        off=0,
        at_least=0,
        unit="steps",
        name="weight-normalization",
        source="Jordan 2024",
        why=(
            "Filters that keep their length keep the rate at which they turn, which decay and growth would "
            "change in the course of a training."
        ),
    )
    """Every so many steps, scale each filter matrix to the norm sqrt(out channels) before its update; 0: never."""
    norm_growth: int = setting(0, at_least=0, unit="steps")
    """Increase norm_every by so many steps over the training, linearly (hiverge 2025: from 2, by 15)."""
    filter_decay: float = trick(
        0.0, off=0.0, at_least=0, below=1, with_batch=True, name="weight-decay", source="Loshchilov and Hutter 2017"
    )
    """Decoupled weight decay of the filters: the share that a step at the peak rate removes."""
    overlap: bool = True
    """Update the filters above the network's first block while the gradients below are still computed, on a GPU in a
    stream of its own; the result stays the same. Not with compile = "step"."""
