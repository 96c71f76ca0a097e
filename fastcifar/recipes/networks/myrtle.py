"""The networks of the first four posts of "How to train your ResNet", before DavidNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastcifar.recipes.declare import setting
from fastcifar.recipes.networks import NetworkConfig, network


@network("myrtle", "fastcifar.models.myrtle:MyrtleNet")
@dataclass(frozen=True)
class MyrtleConfig(NetworkConfig):
    """The 18-layer network that "How to train your ResNet" begins with (Page 2018, after Johnson's entry to DAWNBench),
    its shortest path, and what that post by post becomes on the way to DavidNet."""

    widths: tuple[int, int, int, int] = setting(
        (64, 128, 256, 256), at_least=1, at_most=65_536, unit="channels", width=True
    )
    """Channels of the stem and the first layer, and of the three later ones, each at half the resolution."""
    blocks: Literal["residual", "shortcut", "convolution"] = "residual"
    """What a layer is. residual: two pre-activation blocks (He 2016). shortcut: what is left of these without their
    long branches. convolution: one convolution, norm and ReLU, and nothing in the first layer."""
    downsampling: Literal["1x1", "3x3", "max-pool"] = "1x1"
    """With blocks convolution how the later layers halve the resolution. 1x1 and 3x3: by a convolution of stride 2 and
    of this kernel, as the shortcuts of the other blocks do by 1x1. max-pool: by a 2x2 max-pool after a 3x3 one's
    ReLU."""
    stem_norm: bool = True
    """Norm and ReLU after the first convolution; the first residual or shortcut block begins with the same again."""
    final_pool: Literal["max-avg", "max", "avg"] = "max-avg"
    """The global pooling before the classifier; max-avg: both, one beside the other."""
    norm_scale: Literal["uniform", "one"] = "uniform"
    """Batch norm's initial scales: drawn uniformly from 0 to 1, as torch did up to 1.1, or 1."""
    norm_precision: Literal["single", "half"] = "single"
    """What scales, biases and running statistics of batch norm are kept in. half: the compute type, as .half() left
    them in torch 0.4, which keeps cuDNN's and fastcifar's own norm from being used."""

    def _check(self) -> None:
        fits = self.blocks == "convolution" or self.downsampling == "1x1"
        self._require("downsampling", fits, f"1x1 with network.blocks {self.blocks}")

    @property
    def least_side(self) -> int:
        return 8 if self.downsampling == "max-pool" else 1  # three pools leave one pixel
