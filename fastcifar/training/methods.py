"""Starts that are computed from given weights on the device: FIRE and DASH. A new one is a line of `_METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from fastcifar.data import Dataset
from fastcifar.errors import UserError
from fastcifar.kernels import plain_batch
from fastcifar.models import GhostBatchNorm, Network
from fastcifar.models.freezing import never_train
from fastcifar.plasticity import dash, fire
from fastcifar.plasticity.layers import trained
from fastcifar.recipes import Recipe
from fastcifar.start import Dash, Fire, Start
from fastcifar.training.loss import Loss
from fastcifar.training.stopwatch import Stopwatch


def is_computed(start: Start) -> bool:
    """Return True for a start that `compute` carries out after `initialize`."""
    return type(start) in _METHODS


def refuse(start: Start, network: Network) -> None:
    """Raise UserError where `start` needs one loss, and a training of `network` has several, and for batches of its own
    that the norms of `network` cannot take."""
    if isinstance(start, Dash):
        if network.outputs > 1:
            raise UserError(f"the start is dash for {type(network).__name__} of several outputs; allowed: one output")
        if start.batch % (ghost := _ghost_batch(network)):
            said = f"batch of the start dash is {start.batch}"
            raise UserError(f"{said}; allowed: 0, or a multiple of network.ghost_batch, {ghost}")


def compute(
    start: Start, network: Network, fresh: Collection[str], recipe: Recipe, dataset: Dataset, loss: Loss | None
) -> float:
    """Bring `network` to the device of `dataset` and change its weights, float32, in place as `start` says; return the
    seconds that this took.

    network: has the source's weights, and fresh ones where they are reset; afterwards, what is frozen or fresh does not
        train.
    fresh: the names of the tensors that are.
    recipe, dataset, loss: those of the training; the dataset is on the device, and a loss of None is the recipe's.
    """
    device = dataset.train.device
    frozen = never_train(network)
    for name, parameter in network.module.named_parameters(remove_duplicate=False):
        if name in fresh or id(parameter) in frozen:
            parameter.requires_grad_(False)
    trained(network.module, "weight", "bias")  # refused by the names that weights have in files
    with Stopwatch(device) as watch:
        _METHODS[type(start)](start, network.to(device), recipe, dataset, loss)
    return watch.seconds


def _fire(start: Fire, network: Network, *_: object) -> None:
    fire(network, start.steps)


def _dash(start: Dash, network: Network, recipe: Recipe, dataset: Dataset, loss: Loss | None) -> None:
    loss = loss or partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    dash(network, _batches(network, start.batch or recipe.batch_size, dataset), loss, start.floor, start.alpha)


def _batches(network: Network, size: int, dataset: Dataset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give the training images in their order, not augmented. What is left over is a batch of its own, of as many whole
    ghost batches as there are; one image alone, of which a norm knows no variance, is none."""
    train, ghost = dataset.train, _ghost_batch(network)
    for indices in torch.arange(len(train), device=train.device).split(size):
        indices = indices[: len(indices) // ghost * ghost]
        if len(indices) > 1:
            images, places = train.at(indices)
            batch = plain_batch(images, places, dataset.mean, dataset.std, torch.float32)
            yield batch.contiguous(memory_format=torch.channels_last), train.labels[indices]


def _ghost_batch(network: Network) -> int:
    """Return the images that a batch of `network` is a multiple of."""
    return (
        max((module.ghost_batch for module in network.modules() if isinstance(module, GhostBatchNorm)), default=0) or 1
    )


_METHODS: dict[type[Start], Callable[[Any, Network, Recipe, Dataset, Loss | None], None]] = {Fire: _fire, Dash: _dash}
