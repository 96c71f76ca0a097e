"""Block sizes and warps of the Triton kernels for each GPU generation: data, so that nothing is searched at run time.

Chosen by counting (16-byte accesses per thread, two or more of them in flight, registers as the compiler reports them),
those of `norm_act_pool` on an H100 by measuring: the best of 90 for the layers of a speedrun94 step (part `sizes` of
`bench.campaign` tries others). A device takes the newest row that is not newer than itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NormSizes:
    """What a pass of `norm_act_pool` is launched with."""

    rows: int
    """Pixels per tile; half of it where the 2x2 windows are accessed too."""
    channels: int
    """Channels per tile, at most; 32 are 64 bytes in half precision, what the memory reads at once."""
    warps: int
    stages: int
    """Tiles on their way from memory at once, one of which is worked on; 1: the next is asked for when it is needed."""
    programs: int
    """Programs that a multiprocessor runs at once: its 65536 registers, by those of a program's threads."""


@dataclass(frozen=True)
class Sizes:
    """What one generation launches. Blocks are powers of two, as `tl.arange` needs."""

    augment_block: int
    """Output values per program of `augment`."""
    augment_warps: int
    entropy_values: int
    """Logits, padded to a power of two of classes, that a program of `cross_entropy` takes."""
    entropy_warps: int
    flat_block: int
    """Elements per program of `flat_sgd` and `flat_ema`."""
    flat_warps: int
    muon_block: int
    """Elements of one filter per program of `muon_direction` and `muon_update`."""
    muon_warps: int
    matrix_tile: int
    """Side of the tiles of `newton_schulz`'s products with whole matrices."""
    matrix_depth: int
    """Terms of the sum that such a product takes at a time, in half precision; half as many in float32."""
    matrix_warps: int
    square_rows: int
    """Rows of a square that a program of its steps holds: 16, the fewest that tensor cores take."""
    square_depth: int
    """Terms of the sum that its products take at a time; half as many in squares of more than 256 rows."""
    square_warps: int
    small_rows: int
    """Rows, at most, of half-precision matrices whose squares one program holds, without spilling registers."""
    norm: NormSizes
    """Of `norm_act_pool`'s forward pass and inference."""
    norm_gradient: NormSizes
    """Of its backward pass."""
    norm_partials: int
    """Programs of a first launch per group, at most: every program of the second merges their partial sums."""
    whiten_pixels: int
    """Pixels of the output per program of `whiten`; 32 a warp give each thread one."""
    whiten_warps: int


_COUNTED = (NormSizes(128, 32, 8, 1, 3), NormSizes(128, 32, 8, 1, 2))
_MEASURED = (NormSizes(64, 32, 4, 3, 4), NormSizes(32, 64, 4, 3, 4))
_SIZES = {
    (8, 0): Sizes(1024, 4, 256, 8, 1024, 4, 2048, 8, 64, 64, 4, 16, 32, 8, 32, *_COUNTED, 128, 64, 2),
    (8, 9): Sizes(1024, 4, 256, 8, 1024, 4, 2048, 8, 64, 64, 4, 16, 32, 8, 32, *_COUNTED, 128, 64, 2),
    (9, 0): Sizes(1024, 4, 256, 8, 1024, 4, 2048, 8, 64, 64, 4, 16, 32, 8, 64, *_MEASURED, 128, 64, 2),
}
_INTERPRETED = Sizes(
    *(4096, 1, 16384, 1, 65536, 1, 65536, 1, 256, 512, 1, 256, 256, 1, 64),
    *(NormSizes(2048, 64, 1, 1, 1), NormSizes(2048, 64, 1, 1, 1), 4, 4096, 1),
)
"""For Triton's interpreter, which takes milliseconds for an operation of any size: few and large programs."""
_INTERPRETED_MULTIPROCESSORS = 1


@functools.cache
def _device_sizes(index: int) -> tuple[Sizes, int]:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    row = max((known for known in _SIZES if known <= capability), default=min(_SIZES))
    return _SIZES[row], properties.multi_processor_count


def launch_sizes(tensor: Tensor) -> tuple[Sizes, int]:
    """`(sizes, number of multiprocessors)` for kernels on `tensor`'s device."""
    if tensor.is_cuda:
        return _device_sizes(tensor.device.index)
    return _INTERPRETED, _INTERPRETED_MULTIPROCESSORS
