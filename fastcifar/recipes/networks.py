"""The sections `model`, `resnet`, `mlp` and `speedrun` of a recipe: the networks' shapes and tricks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.checked import Checked


@dataclass(frozen=True)
class ModelConfig(Checked):
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
class ResNetConfig(Checked):
    """ResNet-18's shape (He 2015, as in torchvision). Only read with network resnet18."""

    section: ClassVar[str] = "resnet"

    width: int = 64
    """Channels of the stem and the first of the four layers; each later layer has twice as many as the one before."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """cifar: a 3x3 convolution of stride 1. imagenet: torchvision's 7x7 one of stride 2 and a max-pool of stride 2."""

    def _check(self) -> None:
        self._require("width", self.width >= 1, "1 or more channels")


@dataclass(frozen=True)
class MLPConfig(Checked):
    """The perceptron's shape (Ash and Adams 2020). Only read with network mlp."""

    section: ClassVar[str] = "mlp"

    hidden: tuple[int, ...] = (100, 100)
    """Units of each hidden layer, all with ReLU."""

    def _check(self) -> None:
        self._require("hidden", all(units >= 1 for units in self.hidden), "positive numbers of units")


@dataclass(frozen=True)
class SpeedrunConfig(Checked):
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
