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
        hardness = losses.cpu().numpy()
        chosen = np.zeros(len(hardness), dtype=bool)
        if self._max_skips:
            overdue = np.flatnonzero(self._skips >= self._max_skips)
            order = np.lexsort((-hardness[overdue], -self._skips[overdue]))  # the last key counts first
            chosen[overdue[order[:number]]] = True
        others = np.flatnonzero(~chosen)
        chosen[others[_largest(hardness[others], number - np.count_nonzero(chosen))]] = True
        self._skips += 1
        self._skips[chosen] = 0
        return torch.from_numpy(np.flatnonzero(chosen))


def _largest(values: np.ndarray, number: int) -> np.ndarray:
    """Which are the `number` largest, of equal ones the first. Not by sorting: a GPU waits for this."""
    if not number:
        return np.zeros(len(values), dtype=bool)
    least = np.partition(values, len(values) - number)[len(values) - number]
    largest = values > least
    largest[np.flatnonzero(values == least)[: number - np.count_nonzero(largest)]] = True
    return largest
