"""AlexNet's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.networks import NetworkConfig, network


@network("alexnet", "fastcifar.models.alexnet:AlexNet")
@dataclass(frozen=True)
class AlexNetConfig(NetworkConfig):
    """AlexNet's shape (Krizhevsky 2014, one tower, as in torchvision)."""

    usual_side: ClassVar[int] = 70

    widths: tuple[int, int, int, int, int] = setting(
        (64, 192, 384, 256, 256), at_least=1, at_most=65_536, unit="channels", width=True
    )
    """Channels of the five convolutions."""
    hidden: tuple[int, int] = setting((4096, 4096), at_least=1, at_most=1_000_000, unit="units", width=True)
    """Units of the two linear layers before the classifier."""
    dropout: float = trick(
        0.5,
        off=0.0,
        at_least=0,
        below=1,
        source="Hinton 2012",
        why=(
            "Units that cannot rely on each other learn features that are of use by themselves, which "
            "regularizes large layers."
        ),
    )
    """Chance of an input of these two layers to be 0 in a training step; 0: none."""
    activation: Literal["relu", "leaky_relu", "gelu", "silu"] = "relu"
    """The nonlinearity after each layer but the last."""
    slope: float = setting(0.01, at_least=0, at_most=1)
    """LeakyReLU's slope of negative inputs (Maas 2013); only read with activation leaky_relu."""

    @property
    def least_side(self) -> int:
        return 63  # the first convolution and three pools leave one pixel
