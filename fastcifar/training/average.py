"""The uniform average of the last weights (Izmailov 2018, SWA) and its batch norm statistics."""

from __future__ import annotations

from typing import Any

import torch

from fastcifar.data import Split
from fastcifar.host import TORCH
from fastcifar.kernels import plain_batch
from fastcifar.models import Network
from fastcifar.models.ensemble import distinct
from fastcifar.models.modes import modes, restore
from fastcifar.optim import FlatModel


class WeightAverage:
    """The mean of the weights of `flat` at each call of `add`, kept in the buffers of the moving average."""

    def __init__(self, flat: FlatModel) -> None:
        self.flat, self.count = flat, 0

    def reset(self) -> None:
        """Start a new mean."""
        self.count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Add the present weights to the mean, without waiting for the device."""
        self.count += 1
        for group in self.flat.groups:
            group.ema.lerp_(group.weights, 1 / self.count)


@TORCH.applied()
@torch.no_grad()
def estimate_statistics(model: Network, split: Split, images: int, batch_size: int, dtype: torch.dtype) -> None:
    """Set the running statistics of all batch norms in `model` to the mean over batches: those of each network that it
    is made of (`Network.made_of`), whichever of them is evaluated.

    model: if it is in training mode, norms in evaluation mode are frozen and stay as they are. All modes and momenta
        are left as they were.
    split: the images, which are not augmented.
    images: number of images, from the first; at least one batch is used, of all images where these are fewer, and else
        a partial last batch is left out.
    batch_size: images in a batch.
    dtype: the compute type.
    """
    before = modes(model)
    trained = [module for module, training in before if training or not model.training]
    norms: list[Any] = [module for module in trained if getattr(module, "running_mean", None) is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    every = torch.arange(len(split), device=split.device)[: max(images, batch_size)]
    parts = [part for part in every.split(batch_size) if len(part) == batch_size] or [every]
    try:
        if not model.training:
            model.train()
        for number, indices in enumerate(parts, start=1):
            for norm in norms:
                norm.momentum = 1 / number  # a plain mean, in which the values from before count nothing
            batch = plain_batch(*split.at(indices), model.mean, model.std, dtype)
            for network in distinct(model):
                network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        restore(before)
