"""Transforms of colors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.transforms import TransformConfig, transform

_JITTER = "Krizhevsky 2012, as torchvision's ColorJitter"


@transform("color_jitter", "fastcifar.transforms.color:color_jitter_pixels")
@dataclass(frozen=True)
class ColorJitterConfig(TransformConfig):
    """Images of another brightness, contrast, saturation and hue, changed in this order."""

    draws: ClassVar[int] = 4
    of_pixels: ClassVar[bool] = True

    brightness: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        source=_JITTER,
        why="Colors vary with the light; a network that sees them vary does not rely on them.",
    )
    """Multiply each image's pixels by a number drawn uniformly from 1 - brightness (at least 0) to 1 + brightness; 0:
    leave them."""
    contrast: float = trick(0.0, off=0.0, at_least=0, source=_JITTER)
    """Multiply each image's differences from its mean gray by such a number; 0: leave them."""
    saturation: float = trick(0.0, off=0.0, at_least=0, source=_JITTER)
    """Multiply each pixel's differences from its gray by such a number; 0: leave them."""
    hue: float = trick(0.0, off=0.0, at_least=0, at_most=0.5, source=_JITTER)
    """Turn each image's hues by a share of the color circle drawn uniformly from -hue to hue; 0: leave them."""


@transform("grayscale", "fastcifar.transforms.color:grayscale_pixels")
@dataclass(frozen=True)
class GrayscaleConfig(TransformConfig):
    """Images that lose their color."""

    of_pixels: ClassVar[bool] = True

    share: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        at_most=1,
        source="Chen 2020 (SimCLR)",
        why="A network that sometimes has no color learns shapes.",
    )
    """Chance of an image to lose its color (SimCLR: 0.2); 0: none."""


@transform("rand_augment", "fastcifar.transforms.color:rand_augment_pixels")
@dataclass(frozen=True)
class RandAugmentConfig(TransformConfig):
    """RandAugment's operations on colors: nothing, autocontrast, equalize, posterize, solarize, color, contrast,
    brightness and sharpness, with the magnitudes of torchvision's RandAugment. Those that move pixels are left out."""

    draws: ClassVar[int] = 8
    of_pixels: ClassVar[bool] = True

    operations: int = trick(
        0,
        off=0,
        at_least=0,
        at_most=4,
        source="Cubuk 2019 (RandAugment)",
        why="Many changes of one strength, with two numbers to tune in place of one for each.",
    )
    """Operations on each image, one after the other, each drawn out of the nine; 0: none. Cubuk: 1 to 3."""
    magnitude: float = setting(9.0, at_least=0, at_most=30)
    """Strength of the operations, of 30."""
