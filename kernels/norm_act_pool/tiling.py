"""How images are divided among programs, and where their pixels lie, for the Triton kernels of `norm_act_pool`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcifar.kernels.launch import multiprocessors

# Triton annotates what may be a constexpr as one:
# pyright: reportArgumentType=false


@dataclass(frozen=True)
class Sizes:
    """Tile sizes, warps and programs of a pass."""

    rows: int
    """Pixels per tile; half of it where the 2x2 windows are accessed too."""
    channels: int
    """Channels per tile, at most; 32 are 64 bytes in half precision, what the memory reads at once."""
    warps: int
    stages: int
    """Tiles on their way from memory at once, one of which is worked on; 1: the next is asked for when it is needed."""
    programs: int
    """Programs that a multiprocessor runs at once: its 65536 registers, by those of a program's threads."""
    partials: int
    """Programs of a first launch per group, at most: every program of the second merges their partial sums."""


@triton.jit
def window_corner(rows, height, width):
    """Return the row in x of the top left pixel of a pooled pixel's window; x has `height` x `width` pixels."""
    out_height, out_width = height // 2, width // 2
    image = rows // (out_height * out_width)
    pixel = rows % (out_height * out_width)
    top = image.to(tl.int64) * height + pixel // out_width * 2
    return top * width + pixel % out_width * 2


@triton.jit
def places_of(rows, columns, channels, height, width, BORDER: tl.constexpr):
    """Return the offsets of pixels and channels in images of `height` x `width` pixels; with BORDER the images have a
    row more above and a column more to the left."""
    if BORDER:
        image = rows // (height * width)
        pixel = rows % (height * width)
        place = (image.to(tl.int64) * (height + 1) + pixel // width + 1) * (width + 1) + pixel % width + 1
    else:
        place = rows.to(tl.int64)
    return place[:, None] * channels + columns[None, :]


@triton.jit
def store_bordered(out_ptr, values, rows, columns, mask, channels, height, width):
    """Store pixels of images that have a border, and zeros where it touches them."""
    places = out_ptr + places_of(rows, columns, channels, height, width, True)
    tl.store(places, values, mask)
    pixel = rows % (height * width)
    top = mask & (pixel < width)[:, None]
    left = mask & (pixel % width == 0)[:, None]
    zeros = tl.zeros_like(values)
    tl.store(places - (width + 1) * channels, zeros, top)
    tl.store(places - channels, zeros, left)
    tl.store(places - (width + 2) * channels, zeros, top & left)


class Tiling:
    """The division of [groups * group_rows, channels] among programs: as many as the device runs at once, each of whole
    tiles; of those that leave `partial` sums no more than can be merged at once."""

    def __init__(
        self, sizes: Sizes, inputs: Tensor, groups: int, *, windows: bool = False, partial: bool = False
    ) -> None:
        images, channels, height, width = inputs.shape
        self.group_rows = images // groups * height * width
        self.tile = {
            "ROWS": sizes.rows // 2 if windows else sizes.rows,
            "CHANNELS": min(sizes.channels, 1 << (channels - 1).bit_length()),
            "num_warps": sizes.warps,
        }
        self.stages = {"STAGES": sizes.stages}
        across = -(-channels // self.tile["CHANNELS"])
        tiles = -(-self.group_rows // self.tile["ROWS"])
        at_once = sizes.programs * multiprocessors(inputs)
        programs = max(1, min(at_once // (across * groups), sizes.partials if partial else tiles, tiles))
        self.program_rows = -(-tiles // programs) * self.tile["ROWS"]
        self.programs = -(-self.group_rows // self.program_rows)
        self.grid = (self.programs, across, groups)

    def new_partials(self, inputs: Tensor) -> Tensor:
        shape = (self.grid[2], self.programs, 2, inputs.shape[1])
        return torch.empty(shape, dtype=torch.float32, device=inputs.device)
