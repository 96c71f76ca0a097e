"""SGD with Nesterov momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastcifar.recipes.declare import Declaration, setting, trick
from fastcifar.recipes.layers import read_layers
from fastcifar.recipes.optimizers import OptimizerConfig, optimizer

_OWN = {"lr": Declaration(above=0, at_most=1e4), "momentum": Declaration(at_least=0, below=1)}
"""What a layer may have of its own."""


@optimizer("sgd", "fastcifar.optim.sgd:FlatSGD")
@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """SGD with Nesterov momentum, the rate inside the velocity (Page's form), in one pass over all weights."""

    scale_free: ClassVar[bool | None] = False
    coupled_decay: ClassVar[bool] = True

    lr: float = setting(1.0, above=0, with_batch=True)
    momentum: float = setting(0.9, at_least=0, below=1, from_one=True)
    """Nesterov momentum; 0: none."""
    weight_decay: float = trick(
        5e-4,
        off=0.0,
        at_least=0,
        source="Krogh and Hertz 1992",
        why=(
            "Small weights overfit less, and where a norm follows a convolution, its decay keeps the "
            "effective rate from falling as weights grow."
        ),
    )
    """Weight decay, coupled: added to the gradient as weight_decay * w."""
    bias_lr_factor: float = trick(
        64.0,
        off=1.0,
        at_least=1e-4,
        at_most=1e4,
        name="bias-rate",
        source="Page 2019",
        why=(
            "Batch norm's biases have small gradients beside those of the filters: at the same rate they "
            "would hardly have moved by the end of a short training."
        ),
    )
    """Multiply the rate of biases by this, and divide their weight decay by it; 1: train them like the weights."""
    layers: tuple[str, ...] = ()
    """Rates and momenta by layer, a word each: layers.2:lr=0.5,momentum=0.95 multiplies the rate of the parameters
    named layers.2, or layers.2. and more, and gives them that momentum; either may be left out. Of several words for a
    parameter the one with the longest name counts, alone. Biases keep bias_lr_factor, and decay stays as it is."""

    def _check(self) -> None:
        self.by_layer()

    def by_layer(self) -> dict[str, tuple[float, float]]:
        """Return the factor of the rate and the momentum of each name in `layers`. Raises UserError for a word that is
        no such pair."""
        found = read_layers(self._path("layers"), self.layers, _OWN, ("FACTOR", "NUMBER"))
        return {name: (own.get("lr", 1.0), own.get("momentum", self.momentum)) for name, own in found.items()}
