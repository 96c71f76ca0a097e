"""Our optimizers as the tests of others make them: with a default rate, Muon among vectors, Lookahead around SGD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import fastcifar


class SGD(fastcifar.SGD):
    """Ours, with a default rate."""

    def __init__(self, params: Iterable, lr: float | torch.Tensor = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)


class LARS(fastcifar.LARS):
    """Ours, with a default rate."""

    def __init__(self, params: Iterable, lr: float | torch.Tensor = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **settings)


class Muon(fastcifar.Muon):
    """Ours, on the parameters of two and more dimensions: the tests give it the biases of a model, too."""

    def __init__(self, params: Iterable, lr: float | torch.Tensor = 0.02, **settings: Any) -> None:
        is_many = isinstance(params, Iterable) and not isinstance(params, torch.Tensor)
        super().__init__(_matrices(params) if is_many else params, lr, **settings)


class Lookahead(fastcifar.Lookahead):
    """Ours, around ours, in the form of a class of parameters."""

    def __init__(
        self, params: Iterable, lr: float | torch.Tensor = 1e-3, every: int = 2, decay: float = 0.5, **settings: Any
    ) -> None:
        super().__init__(SGD(params, lr, **settings), every, decay)


def _matrices(params: Iterable) -> list[Any]:
    """Return the parameters that are no vectors, of a list of parameters, named ones or groups; a list that has none as
    it is, for ours to refuse."""
    params = list(params)
    kept: list[Any] = []
    for group in params:
        if isinstance(group, dict):
            listed = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
            group = {**group, "params": list(filter(_is_matrix, listed))}
            kept += [group] if group["params"] else []
        elif _is_matrix(group):
            kept.append(group)
    return kept or params


def _is_matrix(parameter: torch.Tensor | tuple[str, torch.Tensor]) -> bool:
    return (parameter[1] if isinstance(parameter, tuple) else parameter).dim() > 1
