"""`Units`: which hidden units of a network can be looked at, and replaced, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.errors import UserError, brief


@dataclass(frozen=True)
class Units:
    """Hidden units, channels or features, that one layer makes and one other layer alone reads, without a residual sum
    between. Names are those of modules of the network.

    Where the `reader`'s weights of a unit are 0, nothing that the `maker` and the `norm` have for it changes the
    logits; what lies between works on each unit alone. One thing does not: a layer norm takes the mean and variance of
    all units of an image, so that behind one a change of a unit moves the others.
    """

    maker: str
    """The convolution or linear layer whose outputs they are."""
    reader: str
    """The layer whose inputs they are. A linear layer behind a flattened convolution has several inputs for each, next
    to each other."""
    seen: str
    """The module whose output, `[N, U]` or `[N, U, H, W]`, holds them, up to `activation`. It may have a border of
    zeros, of the same size for all units."""
    norm: str = ""
    """The norm between, with a scale, a bias or running statistics for each unit; none."""
    activation: str = "none"
    """What the network itself applies to that output, a function of `torch.nn.functional`."""
    slope: float = 0.01
    """LeakyReLU's slope, where that is the `activation`."""

    def values(self, output: torch.Tensor) -> torch.Tensor:
        """Return the units' activations, of the shape of the `output` of the module `seen`."""
        if self.activation == "none":
            return output
        further: dict[str, Any] = {"negative_slope": self.slope} if self.activation == "leaky_relu" else {}
        return getattr(F, self.activation)(output, **further)


def refuse_misfit(units: object, model: nn.Module) -> None:
    """Raise UserError unless `units`, which `model`, a network of the user's own, says it has, are some of it."""
    where = f"{type(model).__name__}.units() has"
    if not isinstance(units, Units):
        raise UserError(f"{where} {brief(units)}; allowed: fastcifar.models.Units")
    modules, sizes = dict(model.named_modules()), []
    parameters, state = dict(model.named_parameters()), model.state_dict()  # tied parameters once
    buffers = {name for name, _ in model.named_buffers() if name in state}
    for role in ("maker", "reader", "seen", "norm"):
        name = getattr(units, role)
        if name not in modules or (not name and role != "norm"):
            raise UserError(f"{where} the {role} {brief(name)}; allowed: the name of a module of it")
        weight = getattr(modules[name], "weight", None)
        if role in ("maker", "reader"):
            if not isinstance(weight, torch.Tensor) or weight.dim() < 2 or getattr(modules[name], "transposed", False):
                raise UserError(f"{where} the {role} {name}; allowed: a convolution or a linear layer")
            sizes.append(weight.shape[role == "reader"])
    if sizes[1] % sizes[0]:
        said = f"{units.reader}, which reads {sizes[1]} of the {sizes[0]} of {units.maker}"
        raise UserError(f"{where} the reader {said}; allowed: one that reads all of them")
    if f"{units.reader}.weight" not in parameters:
        said = f"{where} the reader {units.reader}, whose weight is computed from others or another layer's too"
        raise UserError(f"{said}; allowed: a weight of its own")
    for layer in filter(None, (units.maker, units.norm)):
        for name, tensor in (*modules[layer].named_parameters(), *modules[layer].named_buffers()):
            known = f"{layer}.{name}" in parameters.keys() | buffers
            if tensor.dim() and not (known and len(tensor) % sizes[0] == 0):
                said = f"{where} the layer {layer}, and {name} of it is {list(tensor.shape)}"
                raise UserError(f"{said}; allowed: tensors of its own in its state_dict, a row for each of {sizes[0]}")
