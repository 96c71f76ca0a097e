"""Random crop, flip, normalisation, jitter and cutout of a batch gathered from the resident uint8 set."""

from __future__ import annotations

import torch
from torch import Tensor


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index).clamp(0, size - 1)


def augment_reference(
    images: Tensor,
    indices: Tensor,
    offsets: Tensor,
    flips: Tensor | None = None,
    cutouts: Tensor | None = None,
    jitter: Tensor | None = None,
    mean=(0, 0, 0),
    std=(1, 1, 1),
    out_dtype: torch.dtype = torch.float32,
    size: int | None = None,
) -> Tensor:
    """The specification of `augment`."""
    height, width = images.shape[1:3]
    side = height if size is None else size
    steps = torch.arange(side, device=images.device)
    rows = _reflect(offsets[:, 0, None] + steps, height)
    across = steps if flips is None else torch.where(flips[:, None], side - 1 - steps, steps)
    columns = _reflect(offsets[:, 1, None] + across, width)
    pixels = images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
    values = (pixels.float() - pixels.new_tensor(mean, dtype=torch.float32)) * (
        1 / pixels.new_tensor(std, dtype=torch.float32)
    )
    if jitter is not None:
        values = values * jitter[:, 1, None, None, None] + jitter[:, 0, None, None, None]
    if cutouts is not None:
        top, left, tall, wide = (cutouts[:, k, None] for k in range(4))
        inside_rows = (steps >= top) & (steps < top + tall)
        inside_columns = (steps >= left) & (steps < left + wide)
        values = values.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[..., None], 0)
    return values.to(out_dtype).permute(0, 3, 1, 2)


def augment(
    images: Tensor,
    indices: Tensor,
    offsets: Tensor,
    flips: Tensor | None = None,
    cutouts: Tensor | None = None,
    jitter: Tensor | None = None,
    mean=(0, 0, 0),
    std=(1, 1, 1),
    out_dtype: torch.dtype = torch.float32,
    size: int | None = None,
) -> Tensor:
    """Gathered, cropped, flipped, normalised, jittered and cut-out batch, channels-last `[B, 3, size, size]`."""
    return augment_reference(images, indices, offsets, flips, cutouts, jitter, mean, std, out_dtype, size)
