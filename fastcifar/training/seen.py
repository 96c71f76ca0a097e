"""`images_seen`: what the network of a training gets to see of a few images, without training it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.training.timeline import Epoch
from fastcifar.training.train import Trainer


@TORCH.applied()
def images_seen(
    trainer: Trainer, seed: int, places: Sequence[int], epochs: Collection[int]
) -> dict[int, list[np.ndarray | None]]:
    """Return `images[epoch][place]`, uint8 `[size, size, 3]`: the input of the network in a training, no longer
    normalized; None where the epoch does not visit the image.

    trainer: its recipe and training images; a training that it is in is over.
    seed: of the training.
    places: of the images, among the training images.
    epochs: numbers, from 0.

    Plans, batches and images are the training's own. Which images an epoch takes by their losses (`recipe.select`) a
    training alone would tell: here those at `places` are among the hardest, and such an epoch's changes are drawn as
    if they were. Values beyond black and white, as jitter makes them, are cut off.
    Raises UserError for an epoch that the training does not have, and where the classifier alone is computed.
    """
    state, known = trainer.state, trainer.timeline.epochs
    if trainer.features:
        raise UserError("frozen_mode is once, where no step sees an image; allowed: train or eval")
    for number in epochs:
        if not 0 <= number < len(known):
            raise UserError(f"the training has no epoch {number + 1}; allowed: 1 to {len(known)}")
    trainer.reset(seed)
    found: dict[int, list[np.ndarray | None]] = {}
    with state.random, state.feeding():
        for epoch in known[: max(epochs, default=-1) + 1]:  # visits of earlier ones count, for flips
            for each in state.tensors.every:
                if each.image_losses is not None:
                    each.image_losses.zero_()[list(places)] = torch.inf
            state.begin_epoch(epoch)
            if epoch.number in epochs:
                found[epoch.number] = _seen(trainer, epoch, places)
    return found


def _seen(trainer: Trainer, epoch: Epoch, places: Sequence[int]) -> list[np.ndarray | None]:
    """Return the images at `places` in `epoch`, whose plan is drawn."""
    state, mean, std = trainer.state, *map(torch.tensor, (trainer.dataset.mean, trainer.dataset.std))
    visits = {place: at for at, place in enumerate(state.tensors.plan.indices[: epoch.images].tolist())}
    found: dict[int, np.ndarray] = {}
    for batch in sorted({visits[place] // epoch.stage.batch for place in places if place in visits}):
        state.step = epoch.first_step + batch
        state.tensors.position.fill_(batch)
        state.feed_epoch(epoch)
        state.next_images(epoch)
        images = trainer.step.images(epoch.stage_of(state.step)).float().cpu().permute(0, 2, 3, 1)
        pixels = (images * std + mean).round().clamp(0, 255).byte().numpy()
        here = ((place, visits[place] - batch * epoch.stage.batch) for place in places if place in visits)
        found |= {place: pixels[row] for place, row in here if 0 <= row < len(pixels)}
    return [found.get(place) for place in places]
