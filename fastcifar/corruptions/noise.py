"""Noise. Each function takes images uint8 `[N, side, side, 3]`, its parameter and a generator, and returns such
images."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastcifar.corruptions.pixels import normal, to_bytes, to_unit, uniform


def gaussian_noise(images: Tensor, scale: float, generator: Generator) -> Tensor:
    """Add normal numbers of the deviation `scale`."""
    return to_bytes(to_unit(images) + scale * normal(images, generator))


def speckle_noise(images: Tensor, scale: float, generator: Generator) -> Tensor:
    """Add normal numbers of the deviation `scale` times the value."""
    x = to_unit(images)
    return to_bytes(x + x * (scale * normal(images, generator)))


def shot_noise(images: Tensor, photons: float, generator: Generator) -> Tensor:
    """Draw the number of photons of each value, of which white has `photons` on average."""
    return to_bytes(torch.poisson(to_unit(images) * photons, generator=generator) / photons)


def impulse_noise(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Set this share of all values to 0 or 255, half of them each."""
    hit, white = uniform(images, generator) <= share, uniform(images, generator) <= 0.5
    return torch.where(hit, white.to(torch.uint8) * 255, images)
