"""The section `select` of a recipe: which images an epoch visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import Checked, setting, trick


@dataclass(frozen=True)
class SelectConfig(Checked):
    """Epochs that leave out the easiest training images: those whose loss was lowest at their last visit, as it was
    trained on, so without a further forward pass (airbench96 chooses by a small network instead). An image that was
    never visited counts as the hardest. An epoch's training loss and accuracy are those of the images that it
    visits."""

    section: ClassVar[str] = "select"

    keep: float = trick(
        1.0,
        off=1.0,
        above=0,
        at_most=1,
        name="selection",
        source="Jiang 2019 (selective backprop), Katharopoulos and Fleuret 2018",
    )
    """Share of the training images that an epoch visits; 1: all. The epoch has fewer steps in proportion."""
    from_epoch: float = setting(3.0, at_least=1, unit="epochs")
    """Epochs that begin at or after so many leave images out; before, all are visited. 1 at least: a first visit is
    what an image's loss is known from."""
