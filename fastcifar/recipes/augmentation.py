"""The sections `normalize`, `augment` and `mix` of a recipe: the input of a network."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.errors import UserError, brief
from fastcifar.recipes.declare import Checked, plain, setting, trick

MOST_SIDE = 4096
"""Largest side of images in pixels: a GPU's kernels take up to 65,535 blocks of 1024 values for an image."""


LEAST_ALPHA = 1e-3
"""Of mixup and cutmix: a share of Beta(0.001, 0.001) is 0 or 1 nearly always, and of much less no number."""


def by_channel(path: str, values: object, above: float = -math.inf, channels: int = 3) -> tuple[float, ...]:
    """Return `values` as a number for each channel, by default of red, green and blue; `path` names them in errors.

    Raises UserError for others, for NaN and infinities, and for numbers that are not `above`."""
    numbers = plain(values)
    fits = (
        isinstance(numbers, tuple) and len(numbers) == channels and all(type(each) in (int, float) for each in numbers)
    )
    if not fits or not all(above < each < math.inf for each in numbers):
        positive = " above 0" if above == 0 else ""
        many = f"three numbers{positive}, of red, green and blue" if channels == 3 else f"{channels} numbers{positive}"
        raise UserError(f"{path} is {brief(numbers)}; allowed: {many}")
    return tuple(map(float, numbers))


@dataclass(frozen=True)
class NormalizeConfig(Checked):
    """The mean subtracted from each pixel's red, green and blue, and the divisor of the rest, in 0..255 units."""

    section: ClassVar[str] = "normalize"

    mean: tuple[float, ...] = ()
    """Three numbers; none: the data set's mean."""
    std: tuple[float, ...] = setting((), above=0)
    """Three numbers, such as 63.75 63.75 63.75, a quarter of the range; none: the data set's standard deviation."""

    def _check(self) -> None:
        for name in ("mean", "std"):
            self._require(name, len(getattr(self, name)) in (0, 3), "three numbers, for red, green and blue, or none")


@dataclass(frozen=True)
class Augment(Checked):
    """Random changes to a training batch, drawn for a whole epoch at once."""

    section: ClassVar[str] = "augment"

    crop: int = trick(
        4,
        off=0,
        at_least=0,
        below=MOST_SIDE,
        unit="pixels",
        source="He 2015",
        why="The same image at another place is another one to the network: more data for nothing.",
    )
    """Take a random crop of the image's own size, after adding a reflected border of so many pixels; 0: no crop."""
    flip: Literal["none", "random", "alternating", "by-visit"] = trick(
        "random",
        off="none",
        source="Jordan 2024 (airbench)",
        lesser={
            "alternating-flip": (
                "alternating",
                "random",
                "Random flips show some images the same way in two epochs in a row, which is half the news; turn and "
                "turn about shows none so.",
            ),
            "flip-by-visit": (
                "by-visit",
                "alternating",
                "Where images are left out of some epochs, the parity of the epoch no longer alternates what an image "
                "looks like; the count of its visits does.",
            ),
        },
        why="The mirror image of an object is as likely: twice the data for nothing.",
    )
    """Mirror images left to right. random: each with chance 1/2. alternating: every image in every other epoch.
    by-visit: every image at every other of its own visits, which differs where select leaves images out of an epoch, or
    drop_last does."""
    cutout: int = trick(
        0,
        off=0,
        at_least=0,
        at_most=MOST_SIDE,
        unit="pixels",
        source="DeVries and Taylor 2017",
        why="A network that cannot rely on one part of an object learns its other parts.",
    )
    """Side in pixels of a square set to the mean color at a random place; 0: none."""
    brightness: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        name="jitter",
        source="hiverge 2025",
        why=(
            "Brightness and contrast say little about what is seen; a network that sees them vary does not "
            "rely on them."
        ),
    )
    """Add to an image's normalized pixels a number drawn uniformly from -brightness to brightness (hiverge: 0.1399);
    0: none."""
    contrast: float = trick(0.0, off=0.0, at_least=0, at_most=1, name="jitter", source="hiverge 2025")
    """Multiply the brightened pixels by a number drawn uniformly from 1 - contrast to 1 + contrast (hiverge: 0.1308);
    0: none."""
    early_crops: tuple[tuple[int, float], ...] = trick(
        (),
        off=lambda _: {"augment.early_crops": (), "early_batches": ()},
        name="early-crops",
        source="after Howard 2018",
        why=(
            "Early in a training coarse features are learned, which smaller images show as well, at a "
            "fraction of the operations."
        ),
    )
    """Train early epochs on smaller images, which takes fewer operations: on random crops, not rescaled, or as
    augment.early says. Pairs of a side in pixels and the share of the training at which it ends, as in 24 0.2 28 0.6:
    an epoch takes the first size whose share it begins before. Sizes are pixels of the images at hand: of images of 96,
    72 and 84 are what 24 and 28 are of 32. None: whole images of their own size always."""
    early: Literal["crop", "resize"] = trick(
        "crop",
        off="crop",
        name="early-resize",
        needs="early_crops",
        source="Howard 2018, Fulcrum Research 2026",
        why="A smaller image that shows the whole object keeps what a crop of that size cuts away.",
    )
    """What the images of augment.early_crops are. crop: random crops, not rescaled. resize: whole images, shifted and
    mirrored as at full size, then rescaled (bilinear, not antialiased), with cutout's side rescaled too."""

    def _check(self) -> None:
        sizes, shares = ([pair[place] for pair in self.early_crops] for place in (0, 1))
        rising = all(a < b for a, b in itertools.pairwise((0.0, *shares)))
        fits = all(1 <= size <= MOST_SIDE for size in sizes) and rising and max(shares, default=0) <= 1
        self._require(
            "early_crops", fits, f"sizes of 1 to {MOST_SIDE} pixels, each with a share, rising, above 0, up to 1"
        )
        if sizes and self.early == "crop":
            most = min(sizes)
            self._require("cutout", self.cutout <= most, f"up to the smallest of augment.early_crops, {most}")

    def refuse_side(self, side: int) -> None:
        """Raise UserError where images of `side` pixels are too small for these changes."""
        self._require("crop", self.crop < side, f"0 to {side - 1}, below the side of the images, {side} pixels")
        self._require("cutout", self.cutout <= side, f"0 to {side}, the side of the images in pixels")
        if any(size > side for size, _ in self.early_crops):
            crops = [list(crop) for crop in self.early_crops]
            raise UserError(f"augment.early_crops is {crops}; allowed: sides up to {side}, that of the images")


@dataclass(frozen=True)
class MixConfig(Checked):
    """Training images mixed with others of their batch, after all other changes, and their labels with them: the loss
    is the mean of the losses for both labels, weighted by their shares. An answer counts as right if it is that of the
    image with the greater share, whose loss select takes it for. A loss of your own is called for each of the two."""

    section: ClassVar[str] = "mix"

    mixup: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        source="Zhang 2017",
        why="Between two images the answer shall be between theirs, which smooths what the network learns.",
    )
    """Take the mean of two images, weighted by a share of the distribution Beta(mixup, mixup), one for each batch
    (Zhang: 0.1 to 1); 0: none."""
    cutmix: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        source="Yun 2019",
        why="No pixel is wasted as by cutout: the patch shows another object, with its share in the label.",
    )
    """Put a square of the other image into an image, whose area is a share of the distribution Beta(cutmix, cutmix),
    one for each batch (Yun: 1); 0: none."""
    cutmix_share: float = setting(0.5, above=0, at_most=1)
    """Chance of a batch to be mixed by cutmix; mixup mixes the others."""

    def _check(self) -> None:
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            self._require(name, alpha == 0 or alpha >= LEAST_ALPHA, f"0, or {LEAST_ALPHA} and more")
        both = self.mixup and self.cutmix
        self._require("cutmix_share", not both or self.cutmix_share < 1, "below 1, which leaves batches to mix.mixup")

    @property
    def active(self) -> bool:
        """True if images are mixed."""
        return bool(self.mixup or self.cutmix)
