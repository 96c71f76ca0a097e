"""The section `select` of a recipe: the images that an epoch visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import Checked, setting, trick

_SOURCE = "Jiang 2019 (selective backprop), Katharopoulos and Fleuret 2018"


@dataclass(frozen=True)
class SelectConfig(Checked):
    """Epochs without the easiest training images: those whose loss was lowest at their last visit. That loss is the
    training step's own, so it takes no further forward pass (airbench96 chooses by a small network instead). Images
    never visited count as the hardest. An epoch's training loss and accuracy are those of the images that it visits."""

    section: ClassVar[str] = "select"

    keep: float = trick(
        1.0,
        off=1.0,
        above=0,
        at_most=1,
        name="selection",
        source=_SOURCE,
        why="Images that are learned already have small gradients: a pass over them costs as much and gains little.",
    )
    """Share of the training images that an epoch visits, which has fewer steps in proportion; 1: all."""
    from_epoch: float = setting(3.0, at_least=1, unit="epochs")
    """Leave images out from this epoch on. At least 1: an image's loss is known from its first visit."""
