"""The sections `normalize`, `augment`, `select` and `evaluate` of a recipe: which images a network sees, and how."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.checked import Checked


@dataclass(frozen=True)
class NormalizeConfig(Checked):
    """What is taken from each pixel's red, green and blue, and what the rest is divided by, in 0..255 units."""

    section: ClassVar[str] = "normalize"

    mean: tuple[float, ...] = ()
    """Three numbers; none: the data set's own."""
    std: tuple[float, ...] = ()
    """Three numbers, such as 63.75 63.75 63.75, a quarter of the range; none: the data set's own."""

    def _check(self) -> None:
        for name in ("mean", "std"):
            self._require(name, len(getattr(self, name)) in (0, 3), "three numbers, for red, green and blue, or none")
        self._require("std", all(value > 0 for value in self.std), "above 0 each")


@dataclass(frozen=True)
class Augment(Checked):
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
    early_sizes: tuple[int, ...] = ()
    """Sides in pixels of the random crops, unscaled, that early epochs train on in place of whole images, one after the
    other: fewer operations (after Howard 2018, whose early images are smaller ones, resampled); none: never."""
    early_shares: tuple[float, ...] = ()
    """For each of early_sizes the share of the training at which it ends, rising: an epoch takes the first size whose
    share it begins before."""

    def _check(self) -> None:
        self._require("crop", 0 <= self.crop < 32, "0 to 31 pixels")
        self._require("cutout", 0 <= self.cutout <= 32, "0 to 32 pixels")
        self._require("brightness", self.brightness >= 0, "0 or more")
        self._require("contrast", 0 <= self.contrast <= 1, "0 to 1")
        self._require("early_sizes", all(16 <= size <= 32 for size in self.early_sizes), "16 to 32 pixels each")
        rising = all(a < b for a, b in itertools.pairwise((0.0, *self.early_shares)))
        self._require(
            "early_shares",
            len(self.early_shares) == len(self.early_sizes) and rising and max(self.early_shares, default=0) <= 1,
            f"as many as augment.early_sizes has ({len(self.early_sizes)}), rising, above 0, up to 1",
        )
        if self.early_sizes:
            smallest = min(self.early_sizes)
            self._require("cutout", self.cutout <= smallest, f"up to the smallest of augment.early_sizes, {smallest}")


@dataclass(frozen=True)
class SelectConfig(Checked):
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
class EvaluateConfig(Checked):
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
