"""`hardest`: the training images that an epoch visits when it leaves out the easiest."""

from __future__ import annotations

import torch


def hardest(losses: torch.Tensor, number: int) -> torch.Tensor:
    """Return the places, int64 `[number]`, ascending, of the largest `losses`, float `[N]`, infinite for images never
    visited; among equal losses the first places.

    They are chosen by a stable sort on the losses' device, which nothing waits for.
    """
    return losses.argsort(descending=True, stable=True)[:number].sort().values
