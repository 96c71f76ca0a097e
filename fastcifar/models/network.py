"""`Network`: the interface that training, evaluation and warm starts need of every network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.errors import UserError
from fastcifar.models.units import Units
from fastcifar.recipes.augmentation import by_channel

CENTERED = (127.5, 127.5, 127.5)
WHITENING_IMAGES = 10_000
"""Number of training images for whitening, unless a network says another."""

Config = TypeVar("Config")


class Network(nn.Module, ABC, Generic[Config]):
    """Images `[N, C, H, W]`, normalized, to logits `[N, classes]`; C is 3 but for use as a library.

    config: by default a `config_class` with its defaults.
    classes: number of classes.
    mean, std: normalize its images, 0 to 255 units, a number for each channel; `evaluate` reads them.
    side: of the images that it is built for, in pixels; `build` may read it as `self.side`.
    in_channels: C; `build` reads it as `self.in_channels`. Data sets and training have three.

    `head` is the name of the classifier, the one layer whose shape depends on the classes. `frozen_from[name]` is the
    epoch (a float, counted from 0) from which on a parameter that trains at first is frozen. Initial values come from
    torch's global generator.
    """

    config_class: ClassVar[type]
    head: ClassVar[str]
    memory_format: ClassVar[torch.memory_format] = torch.channels_last
    """Memory format of parameters of four dimensions; `torch.preserve_format`: as they were made."""
    frozen_from: dict[str, float]
    first_block: ClassVar[str | None] = None
    """Name of the module at whose output the backward pass may be divided: gradients of later layers are ready for use
    before those of this module and earlier layers are computed. None: not divided."""
    logit_scale: float = 1.0
    """The factor of the classifier's outputs."""
    outputs: int = 1
    """How many logits of an image the loss of a training reads: with more than one those of `all_outputs`, whose losses
    are summed with `loss_weights`."""
    reported_outputs: int = 0
    """Training loss and accuracy are means over the first so many outputs; 0: over all."""

    def __init__(
        self,
        config: Config | None = None,
        classes: int = 10,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        side: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.config: Config = self.config_class() if config is None else config
        usual = CENTERED[:1] * in_channels
        self.mean: tuple[float, ...] = by_channel("mean", usual if mean is None else mean, channels=in_channels)
        self.std: tuple[float, ...] = by_channel("std", usual if std is None else std, above=0, channels=in_channels)
        self.side, self.in_channels, self.frozen_from = side, in_channels, {}
        self.build(self.config, classes)
        self.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]  (torch's annotations lack it)

    @abstractmethod
    def build(self, config: Config, classes: int) -> None:
        """Make the layers that `config` describes."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the classifier takes for images `[N, C, H, W]`, normalized: `[N, F]`. Raises UserError where
        there is no one classifier that is known."""
        raise UserError(
            f"{type(self).__name__} has no one classifier whose input its features are; allowed: its logits"
        )

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits before `logit_scale`: a loss that applies it saves a pass and its gradient."""
        return self.get_submodule(self.head)(self.features(x))

    def all_outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits that the loss reads, before `logit_scale`, `[outputs, B, classes]`, for images
        `[B, 3, H, W]` or, where each output has a batch of its own, for these one after another."""
        return self.unscaled(x)[None]

    def loss_weights(self) -> Sequence[float] | torch.Tensor:
        """Return the weight of each output's loss in that of this step; by default all are averaged. Called once a
        step, and captured with it: what changes is a tensor `[outputs]` on the device, computed there, such as from a
        buffer that counts the calls."""
        return (1 / self.outputs,) * self.outputs

    @classmethod
    def crossings(cls, layer: str) -> tuple[int, int]:
        """Return whether a path that changes between the halves of the channels in every convolution is in the half in
        which it began, 0, or in the other one, 1, before a layer and after it, for `InterpolationNet`.

        layer: the name of the layer, or of one of its tensors."""
        raise NotImplementedError(f"{cls.__name__} does not say where its layers cross")

    def units(self) -> Sequence[Units]:
        """Return the hidden units that one layer makes and one other alone reads, in the order of a forward pass; by
        default none are known. Names are those of modules of `module`."""
        return ()

    @property
    def members(self) -> Sequence[Network]:
        """The networks in it that answer on their own, whose predictions a run keeps beside its own; by default
        none."""
        return ()

    @property
    def made_of(self) -> Sequence[Network]:
        """The networks that it is made of, which together run all that is evaluated or can be taken out, each as it is
        when it is alone; by default itself."""
        return (self,)

    def forward(self, x: torch.Tensor, scaled: bool = True, every: bool = False) -> torch.Tensor:
        """Return logits `[N, classes]`; with `every` those of `all_outputs`."""
        if every:
            return self.all_outputs(x)
        logits = self.unscaled(x)
        return logits * self.logit_scale if scaled and self.logit_scale != 1 else logits

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Compute weights from the uint8 training images `[N, H, W, 3]`, the first `whitening_images` or more, before
        training; by default none."""

    @property
    def whitening_images(self) -> int:
        """How many images `fit_whitening` takes; 0: none, and it is not called."""
        if type(self).fit_whitening is Network.fit_whitening:
            return 0
        return getattr(self.config, "whitening_images", WHITENING_IMAGES)

    @property
    def module(self) -> nn.Module:
        """The module whose parameters are trained, by its own names."""
        return self


def memory_format(model: nn.Module) -> torch.memory_format:
    """Return the memory format in which `model` takes images: channels-last for fastcifar's networks and for
    channels-last filters."""
    module = model.module if isinstance(model, Network) else model
    filters = [parameter for parameter in module.parameters() if parameter.dim() == 4]
    if not all(weight.is_contiguous(memory_format=torch.channels_last) for weight in filters):
        return torch.contiguous_format
    ours = isinstance(module, Network)  # filters of one pixel or one channel lie both ways
    return torch.channels_last if ours or not all(map(torch.Tensor.is_contiguous, filters)) else torch.contiguous_format


def remember_normalization(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Note for `normalization` what the images of `module` are normalized with, and return `module`."""
    module._normalization = (tuple(mean), tuple(std))  # pyright: ignore[reportArgumentType]  (a plain attribute)
    return module


def normalization(module: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation, 0 to 255 units, of the images that `module` was trained on; None: unknown."""
    if isinstance(module, Network):
        return module.mean, module.std
    return getattr(module, "_normalization", None)


class Linear(nn.Linear):
    """A linear layer whose bias may be wider than its matrix: flat buffers keep it in float32."""

    wide_vectors: ClassVar[bool] = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias.to(x.dtype))
