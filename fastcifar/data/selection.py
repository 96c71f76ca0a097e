"""`Selection`: which training images an epoch visits when it leaves out the easiest."""

from __future__ import annotations

import torch


class Selection:
    """Chooses, epoch after epoch, among `count` images by their losses; remembers how often in a row each was left out.

    `max_skips`: an image left out so many times in a row is chosen before all others, the longest left out first; 0: no
    limit. The choice is made on `device`, where the losses are, by stable sorts: nothing waits for it, and equal losses
    give equal choices.
    """

    def __init__(self, count: int, max_skips: int = 0, device: str | torch.device = "cpu") -> None:
        self._max_skips = max_skips
        self._skips = torch.zeros(count, dtype=torch.int64, device=device)

    def choose(self, losses: torch.Tensor, number: int) -> torch.Tensor:
        """The places, int64 `[number]`, ascending, of the images to visit: those of the largest `losses` (float
        `[count]`; infinite where never visited), of equal ones the first."""
        order = losses.argsort(descending=True, stable=True)
        if self._max_skips:
            overdue = self._skips * (self._skips >= self._max_skips)
            order = order[overdue[order].argsort(descending=True, stable=True)]
        chosen = order[:number].sort().values
        self._skips += 1
        self._skips.index_fill_(0, chosen, 0)
        return chosen

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return how often in a row each image was left out, int64 `[count]`, in a tensor of its own."""
        return {"skips": self._skips.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` returned, on whatever device."""
        self._skips.copy_(state["skips"])
