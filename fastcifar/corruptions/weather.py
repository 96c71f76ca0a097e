"""Weather. Each function takes images uint8 `[N, side, side, 3]`, its parameters and a generator, and returns such
images."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastcifar.corruptions.pixels import along_both, normal, smear, to_bytes, to_unit, uniform, zoom

_LIGHTNESS = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a gray image (ITU-R BT.601)."""


def snow(images: Tensor, parameters: tuple[float, ...], generator: Generator) -> Tensor:
    """Take color from the image and add flakes, twice: large values of noise, enlarged and smeared downwards, as they
    are and turned by half a turn."""
    mean, scale, factor, least, radius, sigma, stays = parameters
    x = to_unit(images)
    flakes = mean + scale * normal(images[..., :1], generator)
    flakes = along_both(flakes, zoom(factor, x.shape[1], x.device))
    flakes = to_bytes(torch.where(flakes < least, 0, flakes))
    angles = uniform(images[:, 0, 0, 0], generator, -135, -45)
    flakes = smear(flakes.double(), angles, radius, sigma).round() / 255
    gray = (x * torch.tensor(_LIGHTNESS, dtype=torch.float64, device=x.device)).sum(3, keepdim=True)
    x = stays * x + (1 - stays) * torch.maximum(x, gray * 1.5 + 0.5)
    return to_bytes(x + flakes + flakes.rot90(2, (1, 2)))


def fog(images: Tensor, parameters: tuple[float, float], generator: Generator) -> Tensor:
    """Add a cloud to each image and scale the sum, so that the lightest value stays."""
    thickness, decay = parameters
    x = to_unit(images)
    lightest = x.amax((1, 2, 3), keepdim=True)
    x = x + thickness * plasma(len(x), x.shape[1], decay, x.device, generator)[..., None]
    return to_bytes(x * lightest / (lightest + thickness))


def plasma(count: int, side: int, decay: float, device: torch.device, generator: Generator) -> Tensor:
    """Return fractal clouds from 0 to 1, float64 `[count, side, side]`, by the diamond-square algorithm (Fournier,
    Fussell and Carpenter 1982) on a torus of the next power of two.

    Each round sets the middles of squares, then of diamonds, to the mean of their four corners and a uniform number;
    the bound of these falls by `decay` squared from round to round.
    """
    size = 1 << (side - 1).bit_length()
    cloud = torch.zeros(count, size, size, dtype=torch.float64, device=device)

    def middles(corners: Tensor) -> Tensor:
        return corners / 4 + uniform(corners, generator, -bound, bound)

    step, bound = size, 100.0**2
    while step > 1:
        half = step // 2
        corner = cloud[:, ::step, ::step]
        pairs = corner + corner.roll(-1, 1)
        center = cloud[:, half::step, half::step]
        center.copy_(middles(pairs + pairs.roll(-1, 2)))
        cloud[:, ::step, half::step] = middles(center + center.roll(1, 1) + corner + corner.roll(-1, 2))
        cloud[:, half::step, ::step] = middles(center + center.roll(1, 2) + corner + corner.roll(-1, 1))
        step, bound = half, bound / decay**2
    cloud -= cloud.amin((1, 2), keepdim=True)
    cloud /= cloud.amax((1, 2), keepdim=True)
    return cloud[:, :side, :side]
