"""Wide networks whose weights are those of four narrow ones: between one wide network and an ensemble."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fastcifar.recipes.declare import declaration, setting
from fastcifar.recipes.networks import NetworkConfig

BUILDER = "fastcifar.models.interpolation:InterpolationNet"


@dataclass(frozen=True)
class InterpolationConfig(NetworkConfig):
    """The settings of an interpolation, beside those of the wide network: its widths are the wide network's, and each
    of the four subnetworks has half of them. `of` is the configuration without the settings here; a subclass of both is
    registered with `BUILDER`, and the network says where its layers cross (`Network.crossings`)."""

    is_joint: ClassVar[bool] = True
    of: ClassVar[type[NetworkConfig]]

    loss: Literal["wide", "ensemble", "mix", "coin"] = "wide"
    """What is trained. wide: the wide network's loss. ensemble: the mean of the subnetworks' losses, so that each
    trains at a quarter of the rate with an optimizer to which the gradient's size matters. mix: both losses in every
    step, weighted, for twice the work. coin: one of the two in each step, from the run's seed, for as much work."""
    share: float = setting(0.5, at_least=0, at_most=1)
    """With loss mix the weight of the wide network's loss, the rest the ensemble's; with coin its chance."""
    output: Literal["auto", "wide", "ensemble"] = "auto"
    """What is evaluated: the wide network's logits, or the mean of the subnetworks'. auto: the ensemble's with loss
    ensemble, else the wide network's. Of what the loss does not train, nothing else is allowed."""
    form: Literal["summed", "joined", "zeroed"] = "joined"
    """How it is computed, to the same results. summed: each layer of the wide network is the sum of the subnetworks'
    activations. joined: it is one convolution with all their weights, as much work in fewer passes. zeroed: this, and
    subnetworks are wide networks with zeros for all other weights; both losses are then five times the work, not
    twice."""

    def _check(self) -> None:
        super()._check()
        for field in dataclasses.fields(self):
            if declaration(field).width:
                value = getattr(self, field.name)
                even = not any(width % 2 for width in (value if isinstance(value, tuple) else (value,)))
                self._require(field.name, even, "even numbers, as each subnetwork has half")
        for name in ("norm", "norm_kind"):  # a layer norm's mean is over channels that the forms do not share
            self._require(name, getattr(self, name, "batch") != "layer", "batch norm in an interpolation")
        other = {"wide": "ensemble", "ensemble": "wide"}.get(self.loss)
        self._require("output", self.output != other, f"auto or {self.loss}, all that loss {self.loss} trains")

    @property
    def evaluates_ensemble(self) -> bool:
        """Whether the ensemble is evaluated, not the wide network."""
        return self.output == "ensemble" or (self.output == "auto" and self.loss == "ensemble")

    def wide(self) -> NetworkConfig:
        """Return the configuration of the wide network."""
        return self.of(**self._of_network(1))

    def narrow(self) -> NetworkConfig:
        """Return the configuration of each subnetwork."""
        return self.of(**self._of_network(2))

    def _of_network(self, divisor: int) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self.of) if field.init}
        for field in dataclasses.fields(self.of):
            if declaration(field).width:
                width = values[field.name]
                many = isinstance(width, tuple)
                values[field.name] = tuple(each // divisor for each in width) if many else width // divisor
        return values
