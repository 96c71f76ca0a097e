"""A change to images, a trick, in two files."""

from dataclasses import dataclass
from typing import ClassVar

import fastcifar


@fastcifar.transform("grey", "grey.function:grey")
@dataclass(frozen=True)
class GreyConfig(fastcifar.TransformConfig):
    """Images that lose color."""

    draws: ClassVar[int] = 2

    share: float = fastcifar.trick(0.0, off=0.0, at_least=0, at_most=1, name="grey", source="Chen 2020, SimCLR")
    """Chance of an image to lose some; 0: none."""
    most: float = fastcifar.setting(1.0, at_least=0, at_most=1)
    """Largest part of its color that it loses."""
