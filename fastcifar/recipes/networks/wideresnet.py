"""The shape of wide residual networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.networks import NetworkConfig, network


@network("wideresnet", "fastcifar.models.wideresnet:WideResNet")
@dataclass(frozen=True)
class WideResNetConfig(NetworkConfig):
    """The shape of wide residual networks, by default WRN-16-8 (Zagoruyko and Komodakis 2016)."""

    depth: int = setting(16, at_least=10, at_most=1000, unit="layers")
    """Layers of weights on the longest path, 4 and a multiple of 6: 10, 16, 22, 28, 40."""
    widen: int = setting(8, at_least=1, at_most=512, width=True)
    """Factor of the widths of the three groups of blocks, 16, 32 and 64 channels; the stem has 16."""
    dropout: float = trick(0.0, off=0.0, at_least=0, below=1, source="Zagoruyko 2016")
    """Chance of an input of each block's second convolution to be 0 in a training step (Zagoruyko: 0.3); 0: none."""
    activation: Literal["relu", "leaky_relu", "gelu", "silu"] = "relu"
    """The nonlinearity after each batch norm."""
    slope: float = setting(0.01, at_least=0, at_most=1)
    """LeakyReLU's slope of negative inputs (Maas 2013); only read with activation leaky_relu."""

    def _check(self) -> None:
        self._require("depth", self.depth % 6 == 4, "4 and a multiple of 6, as in 10, 16, 22, 28, 40")
