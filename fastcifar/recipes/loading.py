"""The section `loading` of a recipe: where and how the batches of a training are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fastcifar.errors import UserError, brief
from fastcifar.recipes.declare import Checked, setting

if TYPE_CHECKING:
    from fastcifar.recipes.recipe import Recipe


@dataclass(frozen=True)
class LoadingConfig(Checked):
    """How batches are made. `host` is the baseline that Page's first post begins with (How to train your ResNet, 2018),
    and the other fields are the steps by which that became faster; docs/loading.md tells which is which.

    What is trained does not depend on the workers or on where images are preprocessed, and with random numbers drawn by
    epoch it is what `resident` trains.
    """

    section: ClassVar[str] = "loading"

    loader: Literal["resident", "host"] = "resident"
    """resident: a step makes its batch on the device, out of the images that lie there or are read ahead of time, and
    nothing else here is read. host: a plain DataLoader of torch's makes it, image by image in Python, and it is copied
    to the device (--loader host for short)."""
    workers: int = setting(2, at_least=0, at_most=256, unit="processes")
    """Processes of the DataLoader; 0: the main thread makes each batch before its step."""
    random: Literal["image", "epoch"] = "image"
    """image: a call of the random number generator for each number, when its image is changed. epoch: all numbers at
    once, before the epoch."""
    preprocess: Literal["visit", "host", "device"] = "visit"
    """Where images get their border and are normalized. visit: each whenever it is visited. host: all once, at the
    beginning of the training. device: all once, on the device, from where they are copied back. The two last keep them
    in host memory as float32."""

    def refuse(self, recipe: Recipe) -> None:
        """Raise UserError for what `recipe` asks for and a DataLoader on the host does not do."""
        augment = recipe.augment
        by_turns = self.random == "image" and augment.flip not in ("none", "random")
        for name, value, given, allowed in (
            ("augment.early_crops", augment.early_crops, augment.early_crops, "none"),
            ("augment.brightness", augment.brightness, augment.brightness, "0"),
            ("augment.contrast", augment.contrast, augment.contrast, "0"),
            ("augment.flip", augment.flip, by_turns, "none, random, or any and loading.random epoch"),
            ("ensemble.order", recipe.ensemble.order, recipe.ensemble.orders > 1, "shared"),
        ):
            if self.loader == "host" and given:
                raise UserError(f"{name} is {brief(value)} with loading.loader host; allowed: {allowed}")
