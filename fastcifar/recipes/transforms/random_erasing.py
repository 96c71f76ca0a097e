"""The transform `random_erasing`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.transforms import TransformConfig, transform


@transform("random_erasing", "fastcifar.transforms.erase:erase")
@dataclass(frozen=True)
class RandomErasingConfig(TransformConfig):
    """Images that lose a rectangle at a random place inside them."""

    draws: ClassVar[int] = 6

    share: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        at_most=1,
        source="Zhong 2017",
        why="A network that cannot rely on one part of an object learns its other parts.",
    )
    """Chance of an image to lose a rectangle (Zhong: 0.5); 0: none."""
    area: tuple[float, float] = setting((0.02, 0.4), above=0, at_most=1)
    """Least and greatest area of the rectangle as a share of the image, drawn uniformly between them."""
    aspect: tuple[float, float] = setting((0.3, 3.3), above=0)
    """Least and greatest height of the rectangle as a multiple of its width; its logarithm is drawn uniformly among
    those with which the rectangle fits into the image."""
    fill: Literal["zero", "random"] = "zero"
    """What it becomes. zero: the mean color. random: normal noise, whose mean and deviation are those of the images."""

    def _check(self) -> None:
        for name in ("area", "aspect"):
            least, greatest = getattr(self, name)
            self._require(name, least <= greatest, "the least, then the greatest")
