"""`Recipe`: everything about a training method, as frozen values that check themselves.

Standard library only, so that the command line can refuse a bad field before torch is imported. What is outside the
method (dataset, subset, seed, initialisation, device) belongs to the run.

Learning rates and weight decay are written for the *mean* loss over a batch and the coupled form
`g = dloss/dw + weight_decay * w`, `v <- momentum * v - lr * g`, whatever is summed inside.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_type_hints

from fastcifar.errors import UserError
from fastcifar.recipes.fields import did_you_mean

TORCH_OPTIMIZERS = (
    *("Adam", "AdamW", "Adamax", "NAdam", "RAdam"),
    *("SGD", "ASGD", "RMSprop", "Rprop", "Adagrad", "Adadelta"),
)
"""The classes of torch.optim that treat every weight alike, and so can work on flat buffers. Not among them: LBFGS
(asks for the loss again), SparseAdam (sparse gradients), Adafactor and Muon (each matrix for itself)."""


class _Checked:
    """Refuses a field outside its `Literal` and offers `_require` to the checks of the subclasses."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices = get_args(hint)
            if getattr(hint, "__origin__", None) is Literal and getattr(self, name) not in choices:
                self._refuse(name, "one of " + ", ".join(map(str, choices)))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                self._refuse(field.name, "a finite number")
        self._check()

    def _check(self) -> None:
        """Checks beyond the types; subclasses call `_require`."""

    def _refuse(self, name: str, allowed: str) -> None:
        path = f"{self.section}.{name}" if self.section else name
        raise UserError(f"{path} is {getattr(self, name)!r}; allowed: {allowed}")

    def _require(self, name: str, ok: object, allowed: str) -> None:
        if not ok:
            self._refuse(name, allowed)


@dataclass(frozen=True)
class Augment(_Checked):
    """Random changes to a training batch, drawn for a whole epoch at once."""

    section: ClassVar[str] = "augment"

    crop: int = 4
    """Pixels of reflected border from which a random crop of the image's own size is taken; 0: no crop."""
    flip: Literal["none", "random", "alternating"] = "random"
    """Mirror left to right: never, each image with chance 1/2, or every image in every other epoch (airbench)."""
    cutout: int = 0
    """Side in pixels of a square set to the mean colour at a random place (DeVries and Taylor 2017); 0: none."""

    def _check(self) -> None:
        self._require("crop", 0 <= self.crop < 32, "0 to 31 pixels")
        self._require("cutout", 0 <= self.cutout <= 32, "0 to 32 pixels")


@dataclass(frozen=True)
class ModelConfig(_Checked):
    """DavidNet's shape and tricks (Page, How to train your ResNet, 2018-2019); each trick is one field. Only read with
    network davidnet."""

    section: ClassVar[str] = "model"

    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    """Channels of the stem and of the three layers."""
    residual: tuple[int, ...] = (1, 3)
    """Layers (1 to 3) that get a residual branch of two convolutions."""
    whitening: bool = True
    """Begin with the frozen 3x3 patch whitening and a trained 1x1 convolution, instead of a trained 3x3 one."""
    whitening_images: int = 10_000
    """Training images, from the first, whose patches the whitening is computed from."""
    whitening_eps: float = 1e-2
    """Added to the patches' eigenvalues before the inverse square root."""
    norm: bool = True
    """Batch norm after each trained convolution; without it a trained bias alone."""
    ghost_batch: int = 32
    """Images per group of ghost batch norm (Hoffer 2017), consecutive in the batch; 0: plain batch norm."""
    freeze_scale: bool = True
    """Keep batch norm's scales at 1 and train its biases alone."""
    norm_momentum: float = 0.1
    """Share of a step's statistics in the running statistics."""
    norm_eps: float = 1e-5
    """Added to the variance in batch norm."""
    activation: Literal["celu", "relu", "gelu", "silu", "none"] = "celu"
    """The nonlinearity after each batch norm."""
    celu_alpha: float = 0.3
    """CELU's alpha (Barron 2017); only read with activation celu."""
    pool: Literal["max", "avg"] = "max"
    """The 2x2 pooling of the three layers, before batch norm."""
    final_pool: Literal["max", "avg"] = "max"
    """The global pooling before the classifier."""
    logit_scale: float = 1 / 16
    """The constant that the logits are multiplied by."""

    def _check(self) -> None:
        self._require("widths", all(width >= 1 for width in self.widths), "four positive numbers of channels")
        self._require("residual", set(self.residual) <= {1, 2, 3}, "any of 1, 2, 3")
        self._require("whitening_images", self.whitening_images >= 1, "1 or more images")
        self._require("whitening_eps", self.whitening_eps > 0, "above 0")
        self._require("ghost_batch", self.ghost_batch >= 0, "0 (plain) or a number of images")
        self._require("norm_momentum", 0 < self.norm_momentum <= 1, "above 0, up to 1")
        self._require("norm_eps", self.norm_eps > 0, "above 0")
        self._require("celu_alpha", self.celu_alpha > 0, "above 0")
        self._require("logit_scale", self.logit_scale > 0, "above 0")


@dataclass(frozen=True)
class ResNetConfig(_Checked):
    """ResNet-18's shape (He 2015, as in torchvision). Only read with network resnet18."""

    section: ClassVar[str] = "resnet"

    width: int = 64
    """Channels of the stem and the first of the four layers; each later layer has twice as many as the one before."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """cifar: a 3x3 convolution of stride 1. imagenet: torchvision's 7x7 one of stride 2 and a max-pool of stride 2."""

    def _check(self) -> None:
        self._require("width", self.width >= 1, "1 or more channels")


@dataclass(frozen=True)
class MLPConfig(_Checked):
    """The perceptron's shape (Ash and Adams 2020). Only read with network mlp."""

    section: ClassVar[str] = "mlp"

    hidden: tuple[int, ...] = (100, 100)
    """Units of each hidden layer, all with ReLU."""

    def _check(self) -> None:
        self._require("hidden", all(units >= 1 for units in self.hidden), "positive numbers of units")


@dataclass(frozen=True)
class OptimConfig(_Checked):
    """The optimiser: SGD with Nesterov momentum, the rate folded into the velocity (Page's form), or one of torch's."""

    section: ClassVar[str] = "optim"

    name: str = "sgd"
    """sgd: our own, in one pass over all weights. Else a class of torch.optim, such as Adam, AdamW, RMSprop or SGD;
    what is not a field here keeps torch's default (SGD is then without Nesterov, and Adam's betas are 0.9 and
    0.999)."""
    lr: float = 1.0
    """Peak learning rate, for the mean loss."""
    momentum: float = 0.9
    """Momentum (of sgd: Nesterov's); 0: none. Not read by a class of torch.optim that takes none, such as Adam."""
    weight_decay: float = 5e-4
    """Weight decay, coupled (added to the gradient as weight_decay * w); with AdamW as that class has it."""
    bias_lr_factor: float = 64.0
    """Biases train at this multiple of the rate, their weight decay divided by it; 1: like the weights."""

    def _check(self) -> None:
        known = ("sgd", *TORCH_OPTIMIZERS)
        if self.name not in known:
            hint = did_you_mean(self.name, known)
            raise UserError(f"optim.name is {self.name!r}{hint}; allowed: {', '.join(known)}")
        self._require("lr", self.lr > 0, "above 0")
        self._require("momentum", 0 <= self.momentum < 1, "0 up to, not including, 1")
        self._require("weight_decay", self.weight_decay >= 0, "0 or more")
        self._require("bias_lr_factor", self.bias_lr_factor > 0, "above 0")


@dataclass(frozen=True)
class Schedule(_Checked):
    """The learning rate over a training: piecewise linear between knots, as multiples of `optim.lr`."""

    section: ClassVar[str] = "schedule"

    knots: tuple[float, ...] = (0.0, 0.2, 0.8, 1.0)
    """Places in the training, as fractions of its epochs: rising, from 0 to 1."""
    values: tuple[float, ...] = (0.0, 1.0, 0.1, 0.1)
    """The multiple of the peak rate at each knot."""

    def _check(self) -> None:
        rising = all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
        self._require(
            "knots",
            len(self.knots) >= 2 and rising and self.knots[0] == 0 and self.knots[-1] == 1,
            "rising fractions from 0 to 1",
        )
        self._require("values", len(self.values) == len(self.knots), f"{len(self.knots)} numbers, one for each knot")
        self._require("values", all(value >= 0 for value in self.values), "0 or more each")

    def __call__(self, progress: float) -> float:
        """The multiple of the peak rate at `progress`, a fraction of the training; constant outside 0 to 1."""
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
class EMAConfig(_Checked):
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
class EvaluateConfig(_Checked):
    """How the trained network is evaluated."""

    section: ClassVar[str] = "evaluate"

    tta: Literal["none", "flip"] = "flip"
    """Test-time augmentation: none, or the mean logits of each image and its mirror image."""
    batch_size: int = 1000
    """Images per evaluation batch; no effect on the result beyond rounding."""

    def _check(self) -> None:
        self._require("batch_size", self.batch_size >= 1, "1 or more images")


@dataclass(frozen=True)
class Recipe(_Checked):
    """A whole training method. The defaults are DavidNet's; `fastcifar recipes` lists the named ones."""

    name: str = "davidnet"
    """What the run's outputs call it."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 512
    """Images per step; an epoch's last partial batch is dropped."""
    label_smoothing: float = 0.2
    """Share of the target spread evenly over the classes (Szegedy 2016); 0: none."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type. auto: float16 on CUDA, bfloat16 on a CPU that has it in hardware, else float32."""
    network: Literal["davidnet", "resnet18", "mlp"] = "davidnet"
    """Which network; its own section is read (model, resnet or mlp) and the other two are not."""
    model: ModelConfig = ModelConfig()
    resnet: ResNetConfig = ResNetConfig()
    mlp: MLPConfig = MLPConfig()
    augment: Augment = Augment()
    optim: OptimConfig = OptimConfig()
    schedule: Schedule = Schedule()
    ema: EMAConfig = EMAConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def _check(self) -> None:
        self._require("name", re.fullmatch(r"[\w.+-]+", self.name), "letters, digits and . _ + -")
        self._require("epochs", self.epochs >= 1, "1 or more")
        self._require("batch_size", self.batch_size >= 1, "1 or more images")
        self._require("label_smoothing", 0 <= self.label_smoothing <= 1, "0 to 1")
        if self.batch_size % self.ghost_batch:
            self._refuse("batch_size", f"a multiple of model.ghost_batch, {self.ghost_batch}")

    @property
    def ghost_batch(self) -> int:
        """Images that the network normalises together, which must divide the batch; 1 where any batch will do."""
        if self.network == "davidnet" and self.model.norm and self.model.ghost_batch:
            return self.model.ghost_batch
        return 1
