"""The perceptron's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastcifar.recipes.declare import setting, trick
from fastcifar.recipes.networks import NetworkConfig, network


@network("mlp", "fastcifar.models.mlp:MLP")
@dataclass(frozen=True)
class MLPConfig(NetworkConfig):
    """The perceptron's shape (Ash and Adams 2020)."""

    formerly: ClassVar[str] = "mlp"
    one_side: ClassVar[bool] = True
    has_filters: ClassVar[bool] = False

    hidden: tuple[int, ...] = setting((100, 100), at_least=1, at_most=1_000_000, unit="units")
    """Units of each hidden layer, all with ReLU."""
    norm: Literal["none", "layer"] = trick("none", off="none", name="layer-norm", source="Ba 2016")
    """layer: layer norm of each hidden layer's outputs, before ReLU (with weight decay: Lyle 2024)."""
