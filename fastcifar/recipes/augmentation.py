"""The sections `normalize` and `augment` of a recipe: what a network sees of an image."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.declare import Checked, setting, trick


@dataclass(frozen=True)
class NormalizeConfig(Checked):
    """What is taken from each pixel's red, green and blue, and what the rest is divided by, in 0..255 units."""

    section: ClassVar[str] = "normalize"

    mean: tuple[float, ...] = ()
    """Three numbers; none: the data set's own."""
    std: tuple[float, ...] = setting((), above=0)
    """Three numbers, such as 63.75 63.75 63.75, a quarter of the range; none: the data set's own."""

    def _check(self) -> None:
        for name in ("mean", "std"):
            self._require(name, len(getattr(self, name)) in (0, 3), "three numbers, for red, green and blue, or none")


@dataclass(frozen=True)
class Augment(Checked):
    """Random changes to a training batch, drawn for a whole epoch at once."""

    section: ClassVar[str] = "augment"

    crop: int = trick(4, off=0, at_least=0, below=32, unit="pixels", source="He 2015")
    """Pixels of reflected border from which a random crop of the image's own size is taken; 0: no crop."""
    flip: Literal["none", "random", "alternating"] = trick(
        "random", off="none", source="Jordan 2024 (airbench)", lesser={"alternating-flip": ("alternating", "random")}
    )
    """Mirror left to right: never, each image with chance 1/2, or every image in every other epoch (airbench)."""
    cutout: int = trick(0, off=0, at_least=0, at_most=32, unit="pixels", source="DeVries and Taylor 2017")
    """Side in pixels of a square set to the mean color at a random place; 0: none."""
    brightness: float = trick(0.0, off=0.0, at_least=0, name="jitter", source="hiverge 2025")
    """Largest brightness added to or taken from an image's normalized pixels, uniform (hiverge: 0.1399); 0: none."""
    contrast: float = trick(0.0, off=0.0, at_least=0, at_most=1, name="jitter", source="hiverge 2025")
    """Pixels, brightened, are multiplied by a number within 1 - contrast to 1 + contrast, uniform (hiverge: 0.1308);
    0: none."""
    early_crops: tuple[tuple[int, float], ...] = trick((), off=(), name="early-crops", source="after Howard 2018")
    """Sides in pixels of the random crops, unscaled, that early epochs train on in place of whole images, each with the
    share of the training at which it ends, rising, as in 24 0.2 28 0.6: an epoch takes the first size whose share it
    begins before. Fewer operations (Howard's early images are smaller ones, resampled); none: never."""

    def _check(self) -> None:
        sizes, shares = ([pair[place] for pair in self.early_crops] for place in (0, 1))
        rising = all(a < b for a, b in itertools.pairwise((0.0, *shares)))
        fits = all(16 <= size <= 32 for size in sizes) and rising and max(shares, default=0) <= 1
        self._require("early_crops", fits, "sizes of 16 to 32 pixels, each with a share, rising, above 0, up to 1")
        if sizes:
            self._require(
                "cutout", self.cutout <= min(sizes), f"up to the smallest of augment.early_crops, {min(sizes)}"
            )
