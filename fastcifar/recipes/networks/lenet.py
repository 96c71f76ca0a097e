"""LeNet's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.declare import setting
from fastcifar.recipes.networks import NetworkConfig, network


@network("lenet", "fastcifar.models.lenet:LeNet")
@dataclass(frozen=True)
class LeNetConfig(NetworkConfig):
    """LeNet's shape (LeCun 1998, LeNet-5, as vision courses have it: mean pools and sigmoids)."""

    one_side: ClassVar[bool] = True

    channels: tuple[int, int] = setting((6, 16), at_least=1, at_most=65_536, unit="channels")
    """Channels of the two 5x5 convolutions."""
    hidden: tuple[int, int] = setting((120, 84), at_least=1, at_most=1_000_000, unit="units")
    """Units of the two linear layers before the classifier."""
    activation: Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "silu"] = "sigmoid"
    """The nonlinearity after each layer but the last."""
    slope: float = setting(0.01, at_least=0, at_most=1)
    """LeakyReLU's slope of negative inputs (Maas 2013); only read with activation leaky_relu."""

    @property
    def least_side(self) -> int:
        return 12  # two pools, and a convolution without padding between them, leave one pixel
