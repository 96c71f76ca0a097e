"""The Triton kernel of `augment` and its launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import LaunchSizes, launch


@dataclass(frozen=True)
class Sizes:
    block: int
    """Output values per program."""
    warps: int


SIZES = LaunchSizes({(8, 0): Sizes(block=1024, warps=4)}, interpreted=Sizes(block=4096, warps=1))


@triton.jit
def _reflected(places, SIZE: tl.constexpr):
    places = tl.abs(places)
    return tl.maximum(tl.minimum(places, 2 * (SIZE - 1) - places), 0)


@triton.jit
def _between(places, CROP: tl.constexpr, SIDE: tl.constexpr):
    """Return where places 0 to SIDE - 1 of the output lie in the crop: the place before, and the share of the next."""
    centers = tl.maximum((places.to(tl.float32) + 0.5) * (CROP / SIDE) - 0.5, 0.0)
    before = centers.to(tl.int32)
    return before, centers - before


@triton.jit
def _mixed(first, second, share):
    return first * (1 - share) + second * share


@triton.jit
def _augment_kernel(
    images_ptr,  # uint8 [N, HEIGHT, WIDTH, 3]
    position_ptr,  # int64 [1]: which batch of B choices, or None
    indices_ptr,  # int64 [B], or of as many batches, like all choices
    offsets_ptr,  # int32 [B, 2]: top, left
    flips_ptr,  # bool [B], or None
    cutouts_ptr,  # int32 [B, 4]: top, left, height, width, or None
    jitter_ptr,  # float32 [B, 2]: brightness, contrast, or None
    out_ptr,  # [B, SIDE, SIDE, 3], any floating dtype
    mean0,
    mean1,
    mean2,
    factor0,
    factor1,
    factor2,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SIDE: tl.constexpr,
    CROP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0)
    choice = image.to(tl.int64)
    if position_ptr is not None:
        choice += tl.load(position_ptr) * tl.num_programs(0)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = places < SIDE * SIDE * 3
    channel = places % 3
    pixel = places // 3
    row = pixel // SIDE
    column = pixel % SIDE
    across = column
    if flips_ptr is not None:
        across = tl.where(tl.load(flips_ptr + choice) != 0, SIDE - 1 - column, column)
    top = tl.load(offsets_ptr + choice * 2)
    left = tl.load(offsets_ptr + choice * 2 + 1)
    image_ptr = images_ptr + tl.load(indices_ptr + choice) * (HEIGHT * WIDTH * 3) + channel
    if CROP == SIDE:
        from_row = _reflected(top + row, HEIGHT) * WIDTH
        values = tl.load(image_ptr + (from_row + _reflected(left + across, WIDTH)) * 3, mask, other=0).to(tl.float32)
    else:
        y, share_below = _between(row, CROP, SIDE)
        x, share_right = _between(across, CROP, SIDE)
        above = image_ptr + _reflected(top + y, HEIGHT) * (WIDTH * 3)
        below = image_ptr + _reflected(top + tl.minimum(y + 1, CROP - 1), HEIGHT) * (WIDTH * 3)
        x0 = _reflected(left + x, WIDTH) * 3
        x1 = _reflected(left + tl.minimum(x + 1, CROP - 1), WIDTH) * 3
        upper = _mixed(tl.load(above + x0, mask, other=0), tl.load(above + x1, mask, other=0), share_right)
        lower = _mixed(tl.load(below + x0, mask, other=0), tl.load(below + x1, mask, other=0), share_right)
        values = _mixed(upper, lower, share_below)
    mean = tl.where(channel == 0, mean0, tl.where(channel == 1, mean1, mean2))
    factor = tl.where(channel == 0, factor0, tl.where(channel == 1, factor1, factor2))
    values = (values - mean) * factor
    if jitter_ptr is not None:
        values = values * tl.load(jitter_ptr + choice * 2 + 1) + tl.load(jitter_ptr + choice * 2)
    if cutouts_ptr is not None:
        top = tl.load(cutouts_ptr + choice * 4)
        left = tl.load(cutouts_ptr + choice * 4 + 1)
        bottom = top + tl.load(cutouts_ptr + choice * 4 + 2)
        right = left + tl.load(cutouts_ptr + choice * 4 + 3)
        cut = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        values = tl.where(cut, 0.0, values)
    tl.store(out_ptr + image.to(tl.int64) * (SIDE * SIDE * 3) + places, values, mask)


def augment_triton(
    images: Tensor,
    indices: Tensor,
    offsets: Tensor,
    flips: Tensor | None,
    cutouts: Tensor | None,
    jitter: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    out_dtype: torch.dtype,
    side: int,
    position: Tensor | None,
    batch: int,
    crop: int,
) -> Tensor:
    out = torch.empty((batch, side, side, 3), dtype=out_dtype, device=images.device)
    sizes = SIZES.of(images)
    launch(
        _augment_kernel,
        (batch, -(-side * side * 3 // sizes.block)),
        *(images, position),
        *(None if t is None else t.contiguous() for t in (indices, offsets, flips, cutouts, jitter)),
        *(out, *map(float, mean), *(1 / s for s in std)),
        HEIGHT=images.shape[1],
        WIDTH=images.shape[2],
        SIDE=side,
        CROP=crop,
        BLOCK=sizes.block,
        num_warps=sizes.warps,
    )
    return out.permute(0, 3, 1, 2)
