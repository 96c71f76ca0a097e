"""`Network`: what the training engine, the evaluation and a warm start ask of every network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

CENTRED = (127.5, 127.5, 127.5)


class Network(nn.Module, ABC):
    """Images `[N, 3, H, W]`, normalised, to logits `[N, classes]`.

    `mean` and `std` (0 to 255 units) say what its input was normalised with: `evaluate` reads them. `head` is the name
    of the classifier, the one layer whose shape depends on the classes. `frozen_from` names the parameters that train
    at first and are frozen later, each with the epoch (a float, counted from 0) from which on it is. Initial values
    come from torch's global generator.
    """

    head: ClassVar[str]
    frozen_from: dict[str, float]
    first_block: ClassVar[str | None] = None
    """Name of the module whose output divides the network: the gradients of what comes after it are made first, and may
    be used while those of it and what comes before are still to be made. None: nobody gains by it."""
    logit_scale: float = 1.0
    """What the classifier's outputs are multiplied by."""

    def __init__(self, mean: Sequence[float] = CENTRED, std: Sequence[float] = CENTRED) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        self.frozen_from = {}

    @abstractmethod
    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        """The logits before `logit_scale`: a loss that takes the scale itself saves a pass and its gradient."""

    def forward(self, x: torch.Tensor, scaled: bool = True) -> torch.Tensor:
        logits = self.unscaled(x)
        return logits * self.logit_scale if scaled and self.logit_scale != 1 else logits

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set what is computed from the uint8 training images `[N, H, W, 3]` before training: here nothing."""


class Linear(nn.Linear):
    """A linear layer whose bias may be wider than its matrix: flat buffers keep all biases in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias.to(x.dtype))


def memory_format(model: nn.Module) -> torch.memory_format:
    """How the images for `model` lie in memory: channels-last, unless a filter of its own is contiguous."""
    filters = (parameter for parameter in model.parameters() if parameter.dim() == 4)
    if all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in filters):
        return torch.channels_last
    return torch.contiguous_format
