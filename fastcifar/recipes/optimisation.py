"""The sections `optim`, `schedule`, `lookahead`, `ema`, `average` and `loss_scaling` of a recipe: what becomes of the
weights.

Learning rates and weight decay are written for the *mean* loss over a batch and the coupled form
`g = dloss/dw + weight_decay * w`, `v <- momentum * v - lr * g`, whatever is summed inside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from fastcifar.errors import UserError
from fastcifar.recipes.checked import Checked
from fastcifar.recipes.fields import did_you_mean

TORCH_OPTIMIZERS = (
    *("Adam", "AdamW", "Adamax", "NAdam", "RAdam"),
    *("SGD", "ASGD", "RMSprop", "Rprop", "Adagrad", "Adadelta"),
)
"""The classes of torch.optim that treat every weight alike, and so can work on flat buffers. Not among them: LBFGS
(asks for the loss again), SparseAdam (sparse gradients), Adafactor and Muon (each matrix for itself)."""

TORCH_SCHEDULERS = (
    *("StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR"),
    *("CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR"),
)
"""The classes of torch.optim.lr_scheduler whose rates follow from the step and from arguments that can be written down.
Not among them: those that ask for functions (LambdaLR, MultiplicativeLR) or for other schedulers (SequentialLR,
ChainedScheduler), and ReduceLROnPlateau, which asks for losses as they come."""


@dataclass(frozen=True)
class OptimConfig(Checked):
    """The optimiser: SGD with Nesterov momentum, the rate folded into the velocity (Page's form), Muon (Jordan 2024),
    LARS (You 2017), or one of torch's."""

    section: ClassVar[str] = "optim"

    name: str = "sgd"
    """sgd: our own, in one pass over all weights. muon: orthogonalised updates for convolution filters, SGD for the
    rest. lars: rates in proportion to each weight's norm. Else a class of torch.optim, such as Adam, AdamW, RMSprop or
    SGD; what is not a field here keeps torch's default (SGD is then without Nesterov, and Adam's betas are 0.9 and
    0.999)."""
    lr: float = 1.0
    """Peak learning rate, for the mean loss; of muon that of the filters, whatever the loss (airbench94_muon: 0.24)."""
    momentum: float = 0.9
    """Momentum (of sgd and muon: Nesterov's); 0: none. Not read by a class of torch.optim that takes none, such as
    Adam."""
    weight_decay: float = 5e-4
    """Weight decay, coupled (added to the gradient as weight_decay * w); with AdamW as that class has it. With muon, of
    all but the filters, the share of w that a step at the peak rate removes, before momentum: weight_decay / rate * w
    is added to the gradient (airbench94_muon: 2e-6 an image of the batch)."""
    bias_lr_factor: float = 64.0
    """Biases train at this multiple of the rate, their weight decay divided by it; 1: like the weights. Not read by
    muon and lars."""
    bias_lr: float = 106.0
    """Peak rate of biases and scales, which train with SGD, for the mean loss (airbench94_muon: 0.053 an image of the
    batch, of 2000). Only read by muon and lars."""
    head_lr: float = 1340.0
    """Peak rate of the classifier, which trains with SGD, for the mean loss (airbench94_muon: 0.67 an image of the
    batch, of 2000). Only read by muon."""
    sgd_momentum: float = 0.85
    """Nesterov momentum of what trains with SGD. Only read by muon and lars."""
    ns_steps: int = 3
    """Newton-Schulz steps that orthogonalise an update. Only read by muon."""
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    """a, b and c of those steps, a s + b s^3 + c s^5 for each singular value s (cifar10-speedrun: 3.4576, -4.7391,
    2.0843). Only read by muon."""
    norm_every: int = 1
    """Steps between scalings of each filter matrix to the norm sqrt(out channels), before its update; 0: never. Only
    read by muon."""
    norm_growth: int = 0
    """Steps by which norm_every grows over the training, linearly (cifar10-speedrun: from 2, by 15). Only read by
    muon."""
    filter_decay: float = 0.0
    """Share of a filter that a step at the peak rate removes, decoupled (Loshchilov 2017). Only read by muon."""
    overlap: bool = True
    """Update the filters above the network's first block while the gradients below are still being made, on a GPU in a
    stream of its own; no effect on the result. Only read by muon, and not with compile = "step"."""
    trust_coefficient: float = 0.001
    """LARS's eta: the rate of each matrix or filter is that of the schedule times this, times
    |w| / (|g| + weight_decay |w|); biases and scales have no decay. Only read by lars."""

    def _check(self) -> None:
        known = ("sgd", "muon", "lars", *TORCH_OPTIMIZERS)
        if self.name not in known:
            hint = did_you_mean(self.name, known)
            raise UserError(f"optim.name is {self.name!r}{hint}; allowed: {', '.join(known)}")
        for rate in ("lr", "bias_lr_factor", "bias_lr", "head_lr", "trust_coefficient"):
            self._require(rate, getattr(self, rate) > 0, "above 0")
        for momentum in ("momentum", "sgd_momentum"):
            self._require(momentum, 0 <= getattr(self, momentum) < 1, "0 up to, not including, 1")
        self._require("weight_decay", self.weight_decay >= 0, "0 or more")
        self._require("ns_steps", self.ns_steps >= 1, "1 or more steps")
        self._require("norm_every", self.norm_every >= 0, "0 (never) or a number of steps")
        self._require("norm_growth", self.norm_growth >= 0, "0 or more steps")
        self._require("filter_decay", 0 <= self.filter_decay < 1, "0 up to, not including, 1")


@dataclass(frozen=True)
class Schedule(Checked):
    """The learning rate over a training: piecewise linear between knots, as multiples of `optim.lr`, step t of T, from
    0, being at (t + 1) / T; or one of torch's (LinearLR from 1 to 0 in 100% is 1 - t / T, as airbench has it)."""

    section: ClassVar[str] = "schedule"

    knots: tuple[float, ...] = (0.0, 0.2, 0.8, 1.0)
    """Places in the training, as fractions of its epochs: rising, from 0 to 1. Only read with name linear."""
    values: tuple[float, ...] = (0.0, 1.0, 0.1, 0.1)
    """The multiple of the peak rate at each knot. Only read with name linear."""
    name: str = "linear"
    """linear: piecewise linear between the knots. Else a class of torch.optim.lr_scheduler, such as CosineAnnealingLR
    or OneCycleLR, stepped after every training step; what it multiplies is `optim.lr`."""
    options: tuple[str, ...] = ()
    """That class's arguments, each a word NAME=VALUE; a value is a number, a word, true, false, a share of the
    training's steps such as 30%, or several with commas between. T_max and total_steps are all steps, max_lr is
    `optim.lr` and all others torch's defaults unless given here."""

    def _check(self) -> None:
        known = ("linear", *TORCH_SCHEDULERS)
        if self.name == "ReduceLROnPlateau":
            self._refuse("name", "what follows from the step alone, rates being computed ahead: " + ", ".join(known))
        if self.name not in known:
            hint = did_you_mean(self.name, known)
            raise UserError(f"schedule.name is {self.name!r}{hint}; allowed: {', '.join(known)}")
        self._require("options", not (self.options and self.name == "linear"), "none with schedule.name linear")
        for option in self.options:
            self._require("options", re.fullmatch(r"[A-Za-z]\w*=\S+", option), "words NAME=VALUE")
        rising = all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
        self._require(
            "knots",
            len(self.knots) >= 2 and rising and self.knots[0] == 0 and self.knots[-1] == 1,
            "rising fractions from 0 to 1",
        )
        self._require("values", len(self.values) == len(self.knots), f"{len(self.knots)} numbers, one for each knot")
        self._require("values", all(value >= 0 for value in self.values), "0 or more each")

    def __call__(self, progress: float) -> float:
        """The multiple of the peak rate at `progress`, a fraction of the training, with name linear; constant outside 0
        to 1."""
        knots, values = self.knots, self.values
        if progress <= knots[0]:
            return values[0]
        for (t0, v0), (t1, v1) in zip(
            zip(knots, values, strict=True), zip(knots[1:], values[1:], strict=True), strict=False
        ):
            if progress <= t1:
                return v0 + (v1 - v0) * (progress - t0) / (t1 - t0)
        return values[-1]


@dataclass(frozen=True)
class LookaheadConfig(Checked):
    """Lookahead (Zhang 2019, in airbench96's form): every few steps slow weights move towards the fast ones, by
    1 - decay * progress ** decay_power of the way, and the fast ones go on from there; the training ends on the slow
    ones."""

    section: ClassVar[str] = "lookahead"

    every: int = 0
    """Steps between meetings of slow and fast weights (airbench96: 5); 0: no lookahead."""
    decay: float = 0.95**5
    """Share of the slow weights that a meeting keeps at the end of the training (Zhang: 0.5 throughout)."""
    decay_power: float = 3.0
    """The share is decay times the progress to this power; 0: constant."""

    def _check(self) -> None:
        self._require("every", self.every >= 0, "0 (off) or a number of steps")
        self._require("decay", 0 <= self.decay < 1, "0 up to, not including, 1")
        self._require("decay_power", self.decay_power >= 0, "0 or more")


@dataclass(frozen=True)
class EMAConfig(Checked):
    """Exponential moving average of all floating state, running statistics too; the average is what is evaluated."""

    section: ClassVar[str] = "ema"

    decay: float = 0.99
    """Decay per training step; 0: no average, the last weights are evaluated."""
    every: int = 5
    """Steps between updates, the first after the first step; each update uses decay ** every."""

    def _check(self) -> None:
        self._require("decay", 0 <= self.decay < 1, "0 up to, not including, 1")
        self._require("every", self.every >= 1, "1 or more steps")


@dataclass(frozen=True)
class AverageConfig(Checked):
    """Uniform average of the last weights, batch norm's statistics estimated again for it (Izmailov 2018, SWA); it is
    what is evaluated. Another average than ema's: one of them at a time."""

    section: ClassVar[str] = "average"

    epochs: float = 0.0
    """Length of the training's end, in epochs, whose weights are averaged (all of it, where it is no longer); 0: no
    average."""
    every: int = 5
    """Steps between the weights that are averaged, counted back from the last step."""
    images: int = 5000
    """Training images, the first, unchanged and of full size, that the statistics are estimated from, in batches of
    batch_size; at least one batch, a partial last one left out."""

    def _check(self) -> None:
        self._require("epochs", self.epochs >= 0, "0 (no average) or more")
        self._require("every", self.every >= 1, "1 or more steps")
        self._require("images", self.images >= 1, "1 or more images")


@dataclass(frozen=True)
class LossScalingConfig(Checked):
    """Dynamic loss scaling (Micikevicius 2018, as torch.amp.GradScaler has it): gradients are computed at a multiple of
    their size, so that small ones are not rounded to 0, and divided by it in float32. A step whose gradients are not
    finite is left out and halves the multiple. Only read where the network computes in float16; its steps are not
    captured on a GPU, since each asks whether its gradients are finite."""

    section: ClassVar[str] = "loss_scaling"

    dynamic: bool = False
    """Scale; false: never, as the named recipes train."""
    initial: float = 65536.0
    """The first multiple, of the mean loss's gradients."""
    growth_every: int = 2000
    """Steps in a row with finite gradients after which the multiple is doubled."""

    def _check(self) -> None:
        self._require("initial", self.initial > 0, "above 0")
        self._require("growth_every", self.growth_every >= 1, "1 or more steps")
