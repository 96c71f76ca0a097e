"""`Network`: what the training engine, the evaluation and a warm start ask of every network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

CENTERED = (127.5, 127.5, 127.5)

Config = TypeVar("Config")


class Network(nn.Module, ABC, Generic[Config]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`.

    `config` says what is built, by default a `config_class` with its defaults. `mean` and `std` (0 to 255 units) say
    what its input was normalized with: `evaluate` reads them. `head` is the name of the classifier, the one layer whose
    shape depends on the classes. `frozen_from` names the parameters that train at first and are frozen later, each with
    the epoch (a float, counted from 0) from which on it is. Initial values come from torch's global generator.
    """

    config_class: ClassVar[type]
    head: ClassVar[str]
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    """How parameters of four dimensions lie in memory; `torch.preserve_format`: as they were made."""
    frozen_from: dict[str, float]
    first_block: ClassVar[str | None] = None
    """Name of the module whose output divides the network: the gradients of what comes after it are made first, and may
    be used while those of it and what comes before are still to be made. None: nobody gains by it."""
    logit_scale: float = 1.0
    """What the classifier's outputs are multiplied by."""

    def __init__(
        self,
        config: Config | None = None,
        classes: int = 10,
        mean: Sequence[float] = CENTERED,
        std: Sequence[float] = CENTERED,
    ) -> None:
        super().__init__()
        self.config: Config = self.config_class() if config is None else config
        self.mean, self.std = tuple(mean), tuple(std)
        self.frozen_from = {}
        self.build(self.config, classes)
        self.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]  (torch's annotations lack it)

    @abstractmethod
    def build(self, config: Config, classes: int) -> None:
        """Make the layers that `config` describes."""

    @abstractmethod
    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        """The logits before `logit_scale`: a loss that takes the scale itself saves a pass and its gradient."""

    def forward(self, x: torch.Tensor, scaled: bool = True) -> torch.Tensor:
        logits = self.unscaled(x)
        return logits * self.logit_scale if scaled and self.logit_scale != 1 else logits

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set what is computed from the uint8 training images `[N, H, W, 3]` before training: here nothing."""

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are trained, by its own names."""
        return self


def memory_format(model: nn.Module) -> torch.memory_format:
    """The memory format in which `model` takes images: channels-last for our networks and for filters that lie so."""
    module = model.module if isinstance(model, Network) else model
    filters = [parameter for parameter in module.parameters() if parameter.dim() == 4]
    if not all(weight.is_contiguous(memory_format=torch.channels_last) for weight in filters):
        return torch.contiguous_format
    ours = isinstance(module, Network)  # filters of one pixel or one channel lie both ways
    return torch.channels_last if ours or not all(map(torch.Tensor.is_contiguous, filters)) else torch.contiguous_format


def remember_normalization(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Let `normalization` find these again; the module itself."""
    module._normalization = (tuple(mean), tuple(std))  # pyright: ignore[reportArgumentType]  (a plain attribute)
    return module


def normalization(module: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, 0 to 255 units, of the images that `module` was trained on; None: not known."""
    if isinstance(module, Network):
        return module.mean, module.std
    return getattr(module, "_normalization", None)


class Linear(nn.Linear):
    """A linear layer whose bias may be wider than its matrix: flat buffers keep it in float32."""

    wide_vectors: ClassVar[bool] = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias.to(x.dtype))
