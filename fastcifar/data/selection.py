"""`Selection`: which training images an epoch visits when it leaves out the easiest."""

from __future__ import annotations

import numpy as np
import torch


class Selection:
    """Chooses, epoch after epoch, among `count` images by their losses; remembers how often in a row each was left out.

    `max_skips`: an image left out so many times in a row is chosen before all others, the longest left out first; 0: no
    limit. The choice is the host's, from numbers alone: equal losses give equal choices.
    """

    def __init__(self, count: int, max_skips: int = 0) -> None:
        self._max_skips = max_skips
        self._skips = np.zeros(count, dtype=np.int64)

    def choose(self, losses: torch.Tensor, number: int) -> torch.Tensor:
        """The places, int64 `[number]`, ascending, on the CPU, of the images to visit: those of the largest `losses`
        (float `[count]`, any device; infinite where never visited), of equal ones the first."""
        limit = self._max_skips or np.inf
        overdue = np.where(self._skips >= limit, self._skips, 0)
        order = np.lexsort((-losses.cpu().numpy(), -overdue))  # the last key counts first
        self._skips += 1
        self._skips[order[:number]] = 0
        return torch.from_numpy(np.sort(order[:number]))
