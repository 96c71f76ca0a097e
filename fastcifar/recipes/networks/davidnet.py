"""DavidNet's shape and tricks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.networks import NetworkConfig, network
from fastcifar.recipes.networks.interpolation import BUILDER, InterpolationConfig


@network("davidnet", "fastcifar.models.davidnet:DavidNet")
@dataclass(frozen=True)
class DavidNetConfig(NetworkConfig):
    """DavidNet's shape and tricks (Page, How to train your ResNet, 2018-2019); each trick is one field."""

    formerly: ClassVar[str] = "model"

    widths: tuple[int, int, int, int] = setting(
        (64, 128, 256, 512), at_least=1, at_most=65_536, unit="channels", width=True
    )
    """Channels of the stem and of the three layers."""
    residual: tuple[int, ...] = trick(
        (1, 3),
        off=(),
        at_least=1,
        at_most=3,
        source="Page 2018",
        why=(
            "A branch beside the main path adds layers without making the path that gradients take longer: a "
            "deeper network that trains as well in as few epochs."
        ),
    )
    """Layers (1 to 3) that have a residual branch of two convolutions."""
    extra: tuple[int, ...] = setting((), at_least=1, at_most=3)
    """Layers (1 to 3) that have one more convolution at their end."""
    whitening: bool = trick(
        True,
        off=False,
        source="Page 2019",
        why=(
            "Neighboring pixels are alike, so that a first layer of random filters sees nearly the same "
            "everywhere. Filters that decorrelate patches and bring them to one scale let the next layer "
            "learn at a high rate at once."
        ),
    )
    """Begin with the frozen 3x3 patch whitening and a trained 1x1 convolution, instead of a trained 3x3 one."""
    whitening_images: int = setting(10_000, at_least=1, unit="images")
    """Compute the whitening from the patches of so many training images, the first ones."""
    whitening_eps: float = setting(1e-2, above=0)
    """Added to the patches' eigenvalues before the inverse square root."""
    norm: bool = True
    """A norm after each trained convolution; false: only a trained bias."""
    norm_kind: Literal["batch", "layer"] = trick(
        "batch",
        off="batch",
        name="layer-norm",
        source="Ba 2016",
        why=(
            "It depends on no other image of the batch, and with weight decay it is said to keep networks "
            "able to learn when data change."
        ),
    )
    """The norm. layer: over channels and pixels of each image (with weight decay: Lyle 2024)."""
    ghost_batch: int = trick(
        32,
        off=0,
        at_least=0,
        unit="images",
        name="ghost-batch",
        source="Hoffer 2017",
        why=(
            "Statistics of a few images are noisier than those of the whole batch, which regularizes; where "
            "batches are large they lose that noise."
        ),
    )
    """Images per group of ghost batch norm, consecutive in the batch; 0: plain batch norm."""
    freeze_scale: bool = trick(
        True,
        off=False,
        name="frozen-scale",
        source="Page 2019",
        why=(
            "A convolution follows, which can scale as well: without the scales there are fewer parameters, "
            "and biases can have a rate of their own."
        ),
    )
    """Keep the norms' scales at 1 and train only their biases."""
    norm_momentum: float = setting(0.1, above=0, at_most=1)
    """Share of a step's statistics in the running statistics."""
    norm_eps: float = setting(1e-5, above=0)
    """Added to the variance in a norm."""
    activation: Literal["celu", "relu", "gelu", "silu", "none"] = trick(
        "celu",
        off="relu",
        source="Page 2019",
        why=(
            "A smooth nonlinearity has a gradient below zero too, so that no unit is dead, and a curvature "
            "that an optimizer can follow at high rates."
        ),
    )
    """The nonlinearity after each batch norm."""
    celu_alpha: float = setting(0.3, at_least=1e-30, at_most=1e30)
    """CELU's alpha (Barron 2017); only read with activation celu."""
    pool: Literal["max", "avg"] = "max"
    """The 2x2 pooling of the three layers."""
    pool_after: Literal["convolution", "norm", "activation"] = trick(
        "convolution",
        off="activation",
        name="early-pool",
        source="Page 2019",
        why="Pooling right after the convolution leaves norm and activation a quarter of the pixels to work on.",
    )
    """What the pooling of a layer follows. After the norm it gives what it gives after the activation, which is
    monotonic where it is relu or celu, from a quarter of the work; after the convolution another network."""
    final_pool: Literal["max", "avg"] = trick(
        "max",
        off="avg",
        name="final-max-pool",
        source="Page 2018",
        why=(
            "The largest response anywhere says whether something is there; the mean mixes it with all places"
            " where it is not."
        ),
    )
    """The global pooling before the classifier."""
    logit_scale: float = setting(1 / 16, above=0)
    """Multiply the logits by this constant."""

    @property
    def batch_multiple(self) -> int:
        return (self.norm and self.norm_kind == "batch" and self.ghost_batch) or 1

    @property
    def least_side(self) -> int:
        return 8  # three pools leave one pixel


@network("davidnet-interpolation", BUILDER)
@dataclass(frozen=True)
class DavidNetInterpolationConfig(InterpolationConfig, DavidNetConfig):
    """A wide DavidNet of four narrow ones' weights, with DavidNet's tricks."""

    of: ClassVar[type[NetworkConfig]] = DavidNetConfig
    formerly: ClassVar[str] = ""

    widths: tuple[int, int, int, int] = setting(
        (128, 256, 512, 1024), at_least=2, at_most=65_536, unit="channels", width=True
    )
    """Channels of the wide network's stem and three layers; each subnetwork has half."""
