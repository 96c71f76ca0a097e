"""Which parameters methods on linear layers and convolutions change."""

from __future__ import annotations

import torch
from torch import nn

from fastcifar.errors import UserError


def trained(module: nn.Module, *kinds: str) -> list[torch.Tensor]:
    """Return the parameters called so, "weight" or "bias", of all linear layers and convolutions in `module` that
    train, each once. Raises UserError for one that is computed from others, as weight norm's: what is written into it
    is lost."""
    found = list[torch.Tensor | None]()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            own = {**layer._parameters, **layer._buffers}  # getattr would compute it, which moves spectral norm's state
            for kind in kinds:
                if kind not in own and any(each.requires_grad for each in layer.parameters()):
                    said = f"{name}.{kind}".lstrip(".") + " is computed from other parameters"
                    raise UserError(
                        f"{said}; allowed: a parameter of its own, as remove_parametrizations of torch leaves"
                    )
                found.append(own.get(kind))
    return [each for each in dict.fromkeys(found) if each is not None and each.requires_grad]
