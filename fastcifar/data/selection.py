"""`hardest`: which training images an epoch visits when it leaves out the easiest."""

from __future__ import annotations

import torch


def hardest(losses: torch.Tensor, number: int) -> torch.Tensor:
    """Return the places, int64 `[number]`, ascending, of the largest `losses` (float `[N]`; infinite for an image that
    was never visited), of equal ones the first.

    They are chosen on the losses' device by a stable sort: nothing waits for it, and equal losses give equal choices.
    """
    return losses.argsort(descending=True, stable=True)[:number].sort().values
