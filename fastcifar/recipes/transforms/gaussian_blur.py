"""The transform `gaussian_blur`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.transforms import TransformConfig, transform


@transform("gaussian_blur", "fastcifar.transforms.blur:blur")
@dataclass(frozen=True)
class GaussianBlurConfig(TransformConfig):
    """Images that lose their edges."""

    draws: ClassVar[int] = 2

    share: float = trick(
        0.0,
        off=0.0,
        at_least=0,
        at_most=1,
        source="Chen 2020 (SimCLR)",
        why="A network that sometimes has no fine detail learns coarse features too.",
    )
    """Chance of an image to be blurred (SimCLR: 0.5); 0: none."""
    sigma: tuple[float, float] = setting((0.1, 2.0), above=0, unit="pixels")
    """Least and greatest standard deviation of the blur, drawn uniformly between them for each image."""
    side: int = setting(3, at_least=3, at_most=63, unit="pixels")
    """Side of the filter, an odd number. SimCLR: a tenth of the image's side."""

    def _check(self) -> None:
        self._require("sigma", self.sigma[0] <= self.sigma[1], "the least, then the greatest")
        self._require("side", self.side % 2, "an odd number")
