"""What the optimizers that are used alone, as torch's own are, have in common: checked settings, whole states."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch

from fastcifar.errors import UserError


class StandaloneOptimizer(torch.optim.Optimizer):
    """The base of optimizers for any parameters. They load a state as a copy, and only one that fits."""

    added: ClassVar[dict[str, Any]] = {}
    """Settings that states and pickles of earlier versions lack, each with the value that was meant then."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a copy of `state_dict`, whose tensors torch's own optimizers would change from then on. Raises
        ValueError for the state of another layout, and changes nothing."""
        super().load_state_dict(copy.deepcopy(state_dict))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickled or loaded state; the last thing that torch does in loading one."""
        for parameter, kept in state["state"].items():
            for name, shape in (("momentum_buffer", parameter.shape), ("row_squares", parameter.shape[:1])):
                buffer = kept.get(name) if isinstance(kept, dict) else None
                if buffer is not None and buffer.shape != shape:
                    given, needed = list(buffer.shape), list(shape)
                    raise UserError(f"{name} of the state is {given}; allowed: {needed}, as its parameter")
        super().__setstate__(state)
        for settings in (self.defaults, *self.param_groups):
            for name, value in self.added.items():
                settings.setdefault(name, value)

    def trained(self) -> list[tuple[dict[str, Any], list[tuple[torch.Tensor, torch.Tensor]]]]:
        """Return each param group with its parameters that have a gradient, and these, turned over where it maximizes.
        Raises RuntimeError for a sparse one."""
        groups = []
        for group in self.param_groups:
            pairs = [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]
            if any(gradient.layout != torch.strided for _, gradient in pairs):
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients; allowed: dense ones")
            groups.append((group, [(p, -gradient) for p, gradient in pairs] if group["maximize"] else pairs))
        return groups


def require_settings(optimizer: str, momentum: float, **others: float | torch.Tensor) -> None:
    """Raise UserError for a momentum of `optimizer` outside 0 to 1, or another setting below 0 or of several
    elements."""
    if not 0 <= momentum < 1:
        raise UserError(f"momentum of {optimizer} is {momentum!r}; allowed: 0 up to, not including, 1")
    for name, value in others.items():
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            shape = list(value.shape)
            raise UserError(f"{name} of {optimizer} has shape {shape}; allowed: a number, or a tensor of one element")
        if not value >= 0:
            raise UserError(f"{name} of {optimizer} is {value!r}; allowed: 0 or more")


def scalar(setting: float | torch.Tensor) -> float | torch.Tensor:
    """Return a number as it is, and a tensor of one element without dimensions, as a factor of any tensor."""
    return setting.reshape(()) if isinstance(setting, torch.Tensor) else setting
