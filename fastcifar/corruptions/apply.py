"""`corrupt`: images as CIFAR-10-C has them."""

from __future__ import annotations

import torch

from fastcifar.corruptions import CORRUPTIONS, LEVELS, require
from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.registry import resolve

_LEAST = 8
"""Pixels of a side, below which the filters are wider than the image."""
_AT_ONCE = 3 << 20
"""Values that are corrupted at once: 25 MB in float64."""


@TORCH.applied()
def corrupt(images: torch.Tensor, name: str, severity: int = 1, seed: int = 0) -> torch.Tensor:
    """Return the images with one of the corruptions of CIFAR-10-C: uint8 `[N, side, side, 3]`, on the same device.

    images: uint8 `[N, side, side, 3]`, as in a `Split`, or floating ones from 0 to 1, which are rounded to 8 bits.
    name: a corruption, such as "fog"; `fastcifar/corruptions/__init__.py` lists them with their parameters.
    severity: 1, the mildest, to 5.
    seed: of the random choices, which each image has its own of; they are others on a GPU than on a CPU,
        and what an image gets depends on its place and on how many images are given with it.

    Raises UserError for other images, an unknown corruption, and one that needs a package that is not installed.
    """
    corruption = CORRUPTIONS[name]
    require(name)
    level = checked("severity", severity, int, Declaration(at_least=LEVELS[0], at_most=LEVELS[-1]))
    seed = checked("seed", seed, int, Declaration(at_least=0))
    images = _bytes_of(images)
    generator = torch.Generator(images.device).manual_seed(seed)
    function, parameters = resolve(corruption.function), corruption.parameters[level - 1]
    if not len(images):
        return images.clone()
    count = max(1, _AT_ONCE // images[0].numel())
    return torch.cat([function(part, parameters, generator) for part in images.split(count)])


def _bytes_of(images: torch.Tensor) -> torch.Tensor:
    """Return the images as uint8. Raises UserError unless they are a batch of square ones."""
    if not isinstance(images, torch.Tensor):
        raise UserError(f"images are of type {type(images).__name__}; allowed: a tensor")
    kind = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
    right = images.ndim == 4 and images.shape[3] == 3 and (images.dtype == torch.uint8 or images.is_floating_point())
    if not right or images.shape[1] != images.shape[2] or images.shape[1] < _LEAST:
        allowed = f"uint8 or floating [N, side, side, 3] of {_LEAST} pixels or more a side"
        raise UserError(f"images are {kind}; allowed: {allowed}")
    if images.dtype == torch.uint8:
        return images
    if not ((images >= 0) & (images <= 1)).all():
        raise UserError("images have values outside 0 to 1, or NaN; allowed: floating images from 0 to 1")
    return (images.double() * 255).round().to(torch.uint8)
