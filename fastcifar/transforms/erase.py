"""Random erasing, in bulk."""

from __future__ import annotations

import math

import torch

from fastcifar.kernels.augment import in_boxes
from fastcifar.recipes.transforms.random_erasing import RandomErasingConfig

_GOLDEN = -7046029254386353131
_STEPS = (30, -4658895280553007687), (27, -7723592293110705685), (31, 1)
"""SplitMix64 (Steele, Lea and Flood 2014): the first factor, then shifts and factors, as signed integers."""
_BITS = 23
"""Random bits of a number, so that it and its distance from 1 are exact in float32."""


def erase(images: torch.Tensor, numbers: torch.Tensor, config: RandomErasingConfig) -> torch.Tensor:
    """Erase a rectangle in each chosen image `[B, 3, H, W]`, normalized; `numbers` `[B, 6]`.

    Zhong (2017) draws area and aspect until the rectangle fits; here the aspect is drawn among those that fit."""
    height, width = images.shape[2:]
    chosen, size, form, row, column, key = numbers.split(1, dim=1)
    area = config.area[0] + (config.area[1] - config.area[0]) * size
    # The height, the root of area * aspect, is at most the image's, and the width, that of area / aspect, too.
    square = math.log(height / width)
    low, high = (
        torch.full_like(area, math.log(aspect)).clamp(square + area.log(), square - area.log())
        for aspect in config.aspect
    )
    middle, stretch = (area * height * width).sqrt(), (0.5 * (low + (high - low) * form)).exp()
    tall = (middle * stretch).round().clamp(1, height)
    wide = (middle / stretch).round().clamp(1, width)
    top, left = (row * (height - tall + 1)).floor(), (column * (width - wide + 1)).floor()
    erased = in_boxes(torch.cat([top, left, tall, wide], dim=1), height, width)[:, None]
    erased &= (chosen < config.share)[:, :, None, None]
    if config.fill == "zero":
        return images.clone().masked_fill_(erased, 0)  # a clone keeps the memory format
    noise = noise_of(key, height * width * 3).view(-1, height, width, 3).permute(0, 3, 1, 2)
    return torch.where(erased, noise.to(images.dtype), images)


def noise_of(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` normal numbers for each of the `keys` `[B, 1]`, random float32 from 0 up to 1: `[B, count]`.

    They are functions of key and place alone (SplitMix64), since a plan cannot hold a number for every pixel."""
    places = torch.arange(count, device=keys.device)
    bits = ((keys * 2**24).long() * count + places) * _GOLDEN
    for by, multiplier in _STEPS:
        bits = (bits ^ (bits >> by & (1 << (64 - by)) - 1)) * multiplier  # a shift that moves no sign in
    whole = bits >> (64 - _BITS) & (1 << _BITS) - 1
    return torch.erfinv((2 * whole + 1 - (1 << _BITS)).float() / (1 << _BITS)) * math.sqrt(2)
