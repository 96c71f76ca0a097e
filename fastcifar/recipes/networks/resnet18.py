"""ResNet-18's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.networks import NetworkConfig, network
from fastcifar.recipes.networks.interpolation import BUILDER, InterpolationConfig


@network("resnet18", "fastcifar.models.resnet:ResNet18")
@dataclass(frozen=True)
class ResNet18Config(NetworkConfig):
    """ResNet-18's shape (He 2015, as in torchvision)."""

    formerly: ClassVar[str] = "resnet"

    width: int = setting(64, at_least=1, at_most=8192, unit="channels", width=True)
    """Channels of the stem and the first of the four layers; each later layer has twice as many as the one before."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """cifar: a 3x3 convolution of stride 1. imagenet: torchvision's 7x7 one of stride 2 and a max-pool of stride 2."""
    activation: Literal["relu", "leaky_relu", "gelu", "silu"] = "relu"
    """The nonlinearity after each batch norm and each sum."""
    slope: float = setting(0.01, at_least=0, at_most=1)
    """LeakyReLU's slope of negative inputs (Maas 2013); only read with activation leaky_relu."""
    norm: Literal["batch", "layer"] = trick("batch", off="batch", name="layer-norm", source="Ba 2016")
    """The norm after each convolution. layer: over channels and pixels of each image (with weight decay: Lyle 2024)."""


@network("resnet18-interpolation", BUILDER)
@dataclass(frozen=True)
class ResNet18InterpolationConfig(InterpolationConfig, ResNet18Config):
    """A wide ResNet-18 of four narrow ones' weights."""

    of: ClassVar[type[NetworkConfig]] = ResNet18Config
    formerly: ClassVar[str] = ""

    width: int = setting(128, at_least=2, at_most=8192, unit="channels", width=True)
    """Channels of the wide network's stem and first layer; each subnetwork has half."""
