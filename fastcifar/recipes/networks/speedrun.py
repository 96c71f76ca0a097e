"""The shape and tricks of the speed records' network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.networks import NetworkConfig, network

if TYPE_CHECKING:
    from fastcifar.recipes.recipe import Recipe

_AIRBENCH = "Jordan 2024 (airbench94)"


def _head_of_airbench95(recipe: Recipe) -> Mapping[str, Any]:
    """Return the head of airbench95 and 96: torch's initial weights, logits divided by 9. A step changes the logits by
    its rate times the square of their scale: if the head has a rate of its own, that product stays as it is."""
    network = cast(SpeedrunConfig, recipe.network)
    scale = network.logit_scale or 1 / network.widths[-1]
    off: dict[str, Any] = {"network.head_std": 0.0, "network.logit_scale": 1 / 9}
    if head_lr := getattr(recipe.optimizer, "head_lr", None):
        off["optimizer.head_lr"] = head_lr * (9 * scale) ** 2
    return off


@network("speedrun", "fastcifar.models.speedrun:SpeedrunNet")
@dataclass(frozen=True)
class SpeedrunConfig(NetworkConfig):
    """The shape and tricks of the speed records' network (Jordan 2024, airbench); its variants and successors are
    settings of these fields."""

    formerly: ClassVar[str] = "speedrun"

    widths: tuple[int, int, int] = setting((64, 256, 256), at_least=1, at_most=65_536, unit="channels", width=True)
    """Channels of the three blocks."""
    depth: int = setting(2, at_least=1, at_most=1000, unit="convolutions")
    """Convolutions in each block (airbench96: 3)."""
    inner_widths: tuple[int, int, int] = setting((0, 0, 0), at_least=0, at_most=65_536, unit="channels", width=True)
    """Channels between a block's second and third convolution, as in a bottleneck; 0: those of the block."""
    kernels: tuple[tuple[int, int, int], ...] = setting(((3, 3, 3),) * 3, at_least=1, at_most=3, unit="pixels")
    """Side of the filters of each block's first convolution, before the pool, of its second and of its others: of the
    first 2 or 3, of the others 1 or 3."""
    residual: bool = trick(
        False,
        off=lambda _: {"network.residual": False, "network.residual_after": False},
        source="Jordan 2024 (airbench96)",
    )
    """Add each block's first activation to its last norm's output, before the last activation (airbench96)."""
    residual_after: bool = False
    """Add it after the last activation instead, so that nothing lies between the sums."""
    whitening_size: int = setting(2, at_least=1, at_most=5, unit="pixels")
    """Side in pixels of the whitened patches; there are 3 * side * side filters, and their negatives."""
    whitening_images: int = setting(5_000, at_least=1, unit="images")
    """Compute the whitening from the patches of so many training images, the first ones."""
    whitening_eps: float = setting(5e-4, above=0)
    """Added to the patches' eigenvalues before the inverse square root."""
    whitening_activation: Literal["gelu", "silu", "relu"] = trick(
        "gelu", off="relu", name="activation", source=_AIRBENCH
    )
    """The nonlinearity after the whitening."""
    whitening_bias_epochs: float = trick(
        3.0,
        off=0.0,
        at_least=0,
        unit="epochs",
        name="whitening-bias",
        source=_AIRBENCH,
        why=(
            "The whitening's outputs are centered; a bias that is trained for a short while lets the "
            "nonlinearity after it split them at better places."
        ),
    )
    """Train the whitening's bias for so many epochs, then freeze it; 0: there is no bias."""
    activation: Literal["gelu", "silu", "relu"] = trick("gelu", off="relu", source=_AIRBENCH)
    """The nonlinearity after each batch norm (hiverge's record: silu); gelu is the exact one."""
    ghost_batch: int = trick(0, off=0, at_least=0, unit="images", name="ghost-batch", source="Hoffer 2017")
    """Images per group of ghost batch norm, consecutive in the batch; 0: plain batch norm."""
    freeze_scale: bool = trick(True, off=False, name="frozen-scale", source="Page 2019")
    """Keep batch norm's scales at 1 and train only its biases."""
    norm_momentum: float = setting(0.4, above=0, at_most=1)
    """Share of a step's statistics in the running statistics."""
    norm_eps: float = setting(1e-12, above=0)
    """Added to the variance in batch norm."""
    final_pool: Literal["max", "avg", "max+avg"] = trick("max", off="avg", name="final-max-pool", source="Page 2018")
    """The global pooling before the classifier; max+avg: the sum of both."""
    dirac: bool = trick(
        True,
        off=False,
        source="tysam-code 2023",
        why=(
            "Filters that begin as the identity hand the image through a deep layer from the first step on, "
            "so that early steps are not spent on finding that."
        ),
    )
    """Initialize each convolution's first filters, as many as it has inputs, to the identity."""
    head_std: float = trick(
        1.0,
        off=_head_of_airbench95,
        at_least=0,
        name="head-scale",
        source="Jordan 2024 (airbench94_muon)",
        why=(
            "Logits of the size that the loss expects from the first step on; the classifier's own "
            "initialization would begin with other ones."
        ),
    )
    """Scale the classifier's initial weights to this standard deviation; 0: as torch has them (airbench95, 96)."""
    logit_scale: float = setting(0.0, at_least=0)
    """Multiply the logits by this constant (airbench95, 96: 1/9); 0: by one over the classifier's inputs."""

    def _check(self) -> None:
        self._require("residual", not self.residual or self.depth >= 2, "false where network.depth is 1")
        self._require("inner_widths", not any(self.inner_widths) or self.depth >= 3, "0 where network.depth is below 3")
        self._require("residual_after", self.residual or not self.residual_after, "false where residual is")
        sides = [side for block in self.kernels for side in block[1:]]
        fits = len(self.kernels) == 3 and all(block[0] > 1 for block in self.kernels) and 2 not in sides
        self._require("kernels", fits, "three blocks, each of 2 or 3 pixels, then twice 1 or 3")

    @property
    def batch_multiple(self) -> int:
        return self.ghost_batch or 1

    @property
    def least_side(self) -> int:
        return self.whitening_size + 7  # the whitening and three pools leave one pixel
