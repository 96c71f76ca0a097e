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

TORCH_SCHEDULERS = (
    *("StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR"),
    *("CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR"),
)
"""The classes of torch.optim.lr_scheduler whose rates follow from the step and from arguments that can be written down.
Not among them: those that ask for functions (LambdaLR, MultiplicativeLR) or for other schedulers (SequentialLR,
ChainedScheduler), and ReduceLROnPlateau, which asks for losses as they come."""


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
    brightness: float = 0.0
    """Largest brightness added to or taken from an image's normalised pixels, uniform (hiverge, cifar10-speedrun, 2025:
    0.1399); 0: none."""
    contrast: float = 0.0
    """Pixels, brightened, are multiplied by a number within 1 - contrast to 1 + contrast, uniform (the same: 0.1308);
    0: none."""
    early_size: int = 0
    """Side in pixels of the random crops, unscaled, that the early epochs train on in place of whole images: fewer
    operations (after Howard 2018, whose early images are smaller ones, resampled); 0: never."""
    early_share: float = 0.5
    """Share of the training whose epochs are early: those that begin before it. Only read with early_size."""

    def _check(self) -> None:
        self._require("crop", 0 <= self.crop < 32, "0 to 31 pixels")
        self._require("cutout", 0 <= self.cutout <= 32, "0 to 32 pixels")
        self._require("brightness", self.brightness >= 0, "0 or more")
        self._require("contrast", 0 <= self.contrast <= 1, "0 to 1")
        self._require("early_size", self.early_size == 0 or 16 <= self.early_size <= 32, "0 (never) or 16 to 32 pixels")
        self._require("early_share", 0 <= self.early_share <= 1, "0 to 1")
        if self.early_size:
            self._require("cutout", self.cutout <= self.early_size, f"up to augment.early_size, {self.early_size}")


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
class SpeedrunConfig(_Checked):
    """The shape and tricks of the speed records' network (Jordan 2024, airbench; its variants and successors are
    settings of these fields). Only read with network speedrun."""

    section: ClassVar[str] = "speedrun"

    widths: tuple[int, int, int] = (64, 256, 256)
    """Channels of the three blocks."""
    depth: int = 2
    """3x3 convolutions in each block (airbench96: 3)."""
    residual: bool = False
    """Add each block's first activation to its last norm's output, before the last activation (airbench96)."""
    whitening_size: int = 2
    """Side in pixels of the whitened patches; there are 3 * side * side filters, and their negatives."""
    whitening_images: int = 5_000
    """Training images, from the first, whose patches the whitening is computed from."""
    whitening_eps: float = 5e-4
    """Added to the patches' eigenvalues before the inverse square root."""
    whitening_activation: Literal["gelu", "silu", "relu"] = "gelu"
    """The nonlinearity after the whitening."""
    whitening_bias_epochs: float = 3.0
    """Epochs for which the whitening's bias trains before it is frozen; 0: there is no bias."""
    activation: Literal["gelu", "silu", "relu"] = "gelu"
    """The nonlinearity after each batch norm (gelu: the exact one; hiverge's record: silu)."""
    ghost_batch: int = 0
    """Images per group of ghost batch norm (Hoffer 2017), consecutive in the batch; 0: plain batch norm."""
    freeze_scale: bool = True
    """Keep batch norm's scales at 1 and train its biases alone."""
    norm_momentum: float = 0.4
    """Share of a step's statistics in the running statistics."""
    norm_eps: float = 1e-12
    """Added to the variance in batch norm."""
    final_pool: Literal["max", "avg"] = "max"
    """The global pooling before the classifier."""
    dirac: bool = True
    """Begin with the identity in each 3x3 convolution's first filters, as many as it has inputs (tysam-code 2023)."""
    head_std: float = 1.0
    """Standard deviation that the classifier's initial weights are scaled to; 0: torch's own (airbench95, 96)."""
    logit_scale: float = 0.0
    """The constant that the logits are multiplied by (airbench95, 96: 1/9); 0: one over the classifier's inputs."""

    def _check(self) -> None:
        self._require("widths", all(width >= 1 for width in self.widths), "three positive numbers of channels")
        self._require("depth", self.depth >= 1, "1 or more convolutions")
        self._require("residual", not self.residual or self.depth >= 2, "false where speedrun.depth is 1")
        self._require("whitening_size", 1 <= self.whitening_size <= 5, "1 to 5 pixels")
        self._require("whitening_images", self.whitening_images >= 1, "1 or more images")
        self._require("whitening_eps", self.whitening_eps > 0, "above 0")
        self._require("whitening_bias_epochs", self.whitening_bias_epochs >= 0, "0 or more epochs")
        self._require("ghost_batch", self.ghost_batch >= 0, "0 (plain) or a number of images")
        self._require("norm_momentum", 0 < self.norm_momentum <= 1, "above 0, up to 1")
        self._require("norm_eps", self.norm_eps > 0, "above 0")
        self._require("head_std", self.head_std >= 0, "0 or more")
        self._require("logit_scale", self.logit_scale >= 0, "0 or more")


@dataclass(frozen=True)
class OptimConfig(_Checked):
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
class Schedule(_Checked):
    """The learning rate over a training: piecewise linear between knots, as multiples of `optim.lr`, step t of T, from
    0, being at (t + 1) / T; or one of torch's (LinearLR from 1 to 0 in 100% is 1 - t / T, as airbench has it)."""

    section: ClassVar[str] = "schedule"

    knots: tuple[float, ...] = (0.0, 0.2, 0.8, 1.0)
    """Places in the training, as fractions of its epochs: rising, from 0 to 1. Only read with name linear."""
    values: tuple[float, ...] = (0.0, 1.0, 0.1, 0.1)
    """The multiple of the peak rate at each knot. Only read with name linear."""
    name: str = "linear"
    """linear: piecewise linear between the knots. Else a class of torch.optim.lr_scheduler, such as CosineAnnealingLR
    or OneCycleLR, which begins at `optim.lr` and is stepped after every training step."""
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
class LookaheadConfig(_Checked):
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
class SelectConfig(_Checked):
    """Epochs that leave out the easiest training images: those whose loss was lowest at their last visit, as it was
    trained on, so without a further forward pass (Jiang 2019, selective backprop; Katharopoulos and Fleuret 2018;
    airbench96 chooses by a small network instead). An image that was never visited counts as the hardest. An epoch's
    training loss and accuracy are those of the images that it visits."""

    section: ClassVar[str] = "select"

    keep: float = 1.0
    """Share of the training images that an epoch visits; 1: all. The epoch has fewer steps in proportion."""
    from_epoch: float = 3.0
    """Epochs that begin at or after so many leave images out; before, all are visited. 1 at least: a first visit is
    what an image's loss is known from."""
    max_skips: int = 0
    """An image left out of so many epochs in a row is visited in the next, the longest left out first where an epoch
    cannot hold them all; 0: no limit."""

    def _check(self) -> None:
        self._require("keep", 0 < self.keep <= 1, "above 0, up to 1")
        self._require("from_epoch", self.from_epoch >= 1, "1 or more epochs")
        self._require("max_skips", self.max_skips >= 0, "0 (no limit) or a number of epochs")


@dataclass(frozen=True)
class AverageConfig(_Checked):
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
class EvaluateConfig(_Checked):
    """How the trained network is evaluated."""

    section: ClassVar[str] = "evaluate"

    tta: Literal["none", "flip", "flip-crop"] = "flip"
    """Test-time augmentation: none; the mean logits of each image and its mirror image (Page 2019); or of these and
    both shifted by a pixel to the upper left and to the lower right, the border reflected (Jordan 2024)."""
    tta_shifted: float = 0.5
    """Weight of the four shifted views together, the two others having the rest (airbench: 1/2; hiverge's equal
    weights: 2/3). Only read with tta flip-crop."""
    tta_share: float = 1.0
    """Share of the images that get further views: those whose plain view has the lowest top probability; the others
    keep its logits (hiverge, cifar10-speedrun, 2025: 0.25)."""
    batch_size: int = 1000
    """Images per evaluation batch; no effect on the result beyond rounding."""

    def _check(self) -> None:
        self._require("tta_shifted", 0 <= self.tta_shifted <= 1, "0 to 1")
        self._require("tta_share", 0 <= self.tta_share <= 1, "0 to 1")
        self._require("batch_size", self.batch_size >= 1, "1 or more images")


@dataclass(frozen=True)
class Recipe(_Checked):
    """A whole training method. The defaults are DavidNet's; `fastcifar recipes` lists the named ones."""

    name: str = "davidnet"
    """What the run's outputs call it."""
    epochs: float = 10
    """Passes over the training images (with select, over those it keeps); the last may be in part."""
    batch_size: int = 512
    """Images per step; an epoch's last partial batch is dropped."""
    label_smoothing: float = 0.2
    """Share of the target spread evenly over the classes (Szegedy 2016); 0: none."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute type. auto: float16 on CUDA, bfloat16 on a CPU that has it in hardware, else float32."""
    compile: Literal["off", "step"] = "off"
    """step: the network's forward and backward pass in a training step through torch.compile, ahead of the training and
    counted in process_seconds alone; where that cannot be, one line says so and it stays off."""
    network: Literal["davidnet", "resnet18", "mlp", "speedrun"] = "davidnet"
    """Which network; its own section is read (model, resnet, mlp or speedrun) and the others are not."""
    model: ModelConfig = ModelConfig()
    resnet: ResNetConfig = ResNetConfig()
    mlp: MLPConfig = MLPConfig()
    speedrun: SpeedrunConfig = SpeedrunConfig()
    augment: Augment = Augment()
    optim: OptimConfig = OptimConfig()
    schedule: Schedule = Schedule()
    lookahead: LookaheadConfig = LookaheadConfig()
    ema: EMAConfig = EMAConfig()
    select: SelectConfig = SelectConfig()
    average: AverageConfig = AverageConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def _check(self) -> None:
        self._require("name", re.fullmatch(r"[\w.+-]+", self.name), "letters, digits and . _ + -")
        self._require("epochs", self.epochs > 0, "above 0")
        self._require("batch_size", self.batch_size >= 1, "1 or more images")
        self._require("label_smoothing", 0 <= self.label_smoothing <= 1, "0 to 1")
        if self.ema.decay and self.average.epochs:
            both = f"ema.decay is {self.ema.decay} and average.epochs is {self.average.epochs}"
            raise UserError(f"{both}; allowed: one average of the two, the other 0")
        if self.network == "mlp" and self.augment.early_size:
            raise UserError(f"augment.early_size is {self.augment.early_size}; allowed: 0, an mlp takes whole images")
        if self.optim.name == "muon":
            self._require("network", self.network != "mlp", "with optim.name muon one with convolutions, not mlp")
        if self.batch_size % self.ghost_batch:
            section = "model" if self.network == "davidnet" else "speedrun"
            self._refuse("batch_size", f"a multiple of {section}.ghost_batch, {self.ghost_batch}")

    @property
    def ghost_batch(self) -> int:
        """Images that the network normalises together, which must divide the batch; 1 where any batch will do."""
        if self.network == "davidnet" and self.model.norm and self.model.ghost_batch:
            return self.model.ghost_batch
        if self.network == "speedrun" and self.speedrun.ghost_batch:
            return self.speedrun.ghost_batch
        return 1
