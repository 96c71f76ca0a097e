"""Bringing resident images to another side, all of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn import functional

from fastcifar.data.kept import HostStore, KeptSplit
from fastcifar.data.split import Split
from fastcifar.errors import UserError
from fastcifar.machine import free_memory

_VALUES = 2**23
"""Values in float32 at a time: 32 MB, and as much for the result."""


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return `images`, uint8 `[N, H, W, 3]`, as uint8 `[N, side, side, 3]`: bilinear and antialiased, as
    `torch.nn.functional.interpolate` does in float32, rounded to whole numbers.

    Of images that are not square the shorter side becomes `side`, the longer in proportion, and its middle is kept, as
    torchvision's `Resize(side)` and `CenterCrop(side)` do."""
    height, width = images.shape[1:3]
    tall, wide = (int(side * each / min(height, width)) for each in (height, width))
    top, left = (round((each - side) / 2) for each in (tall, wide))
    out = images.new_empty(len(images), side, side, 3)
    step = max(1, _VALUES // (3 * max(height * width, tall * wide)))
    for part, place in zip(images.split(step), out.split(step), strict=True):
        values = part.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        values = functional.interpolate(values, size=(tall, wide), mode="bilinear", antialias=True)
        values = values[:, :, top : top + side, left : left + side].round().clamp(0, 255)
        place.copy_(values.permute(0, 2, 3, 1))
    return out


def resized_splits(splits: Mapping[str, Split], side: int) -> dict[str, Split]:
    """Return the splits with `resized` images, on their device, or in host memory where they lie outside of it. Raises
    UserError for more than fits into its memory."""
    first = next(iter(splits.values()))
    on_device = first.resident == "device"
    _require_room(sum(map(len, splits.values())), side, first.device if on_device else torch.device("cpu"))
    return {name: _resized(split, side) for name, split in splits.items()}


def _resized(split: Split, side: int) -> Split:
    if split.resident == "device":
        return Split(resized(split.images, side), split.labels)
    images, start = torch.empty((len(split), side, side, 3), dtype=torch.uint8), 0
    for piece in split.pieces():
        images[start : start + len(piece)] = resized(piece, side)
        start += len(piece)
    return KeptSplit(HostStore(images), split.labels)


def _require_room(count: int, side: int, device: torch.device) -> None:
    """Raise UserError unless `count` images of this side fit into the free memory of `device`, as far as that is
    known."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    free = free_memory() if device.type == "cpu" else free
    need = 3 * count * side**2
    if free is not None and need + 8 * _VALUES > free:
        most = math.isqrt(max(0, free - 8 * _VALUES) // (3 * count))
        takes = f"{count:,} images of {side} x {side} pixels take {need / 1e9:.1f} GB"
        raise UserError(
            f"{takes}, and {free / 1e9:.1f} GB are free on {device}; allowed: sides up to {most}, or fewer images"
        )
