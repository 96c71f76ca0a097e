"""What several corruptions do to pixels: units, filters along rows and columns, values between pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Fold = Callable[[Tensor, int], Tensor]
"""Maps whole places (int64) outside of an image of a side to places inside."""


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images as float64 from 0 to 1."""
    return images.double() / 255


def to_bytes(x: Tensor) -> Tensor:
    """Return floating images, 0 to 1, as uint8: clipped and cut to whole numbers, as those of CIFAR-10-C are. A whole
    number that rounding left just below itself stays one, on every device."""
    return (x.clamp(0, 1) * 255 + 1e-9).to(torch.uint8)


def nearest(places: Tensor, side: int) -> Tensor:
    """Fold places to the border pixel: a a | a b c | c c."""
    return places.clamp(0, side - 1)


def mirror(places: Tensor, side: int) -> Tensor:
    """Fold places at the middle of the border pixels: c b | a b c | b a."""
    places = places.abs() % (2 * side - 2)
    return torch.minimum(places, 2 * side - 2 - places)


def symmetric(places: Tensor, side: int) -> Tensor:
    """Fold places at the image's edge: b a | a b c | c b."""
    places = places % (2 * side)
    return torch.minimum(places, 2 * side - 1 - places)


def along_both(x: Tensor, *maps: Tensor) -> Tensor:
    """Return images [n, side, side, C] with a linear map, float64 [side, side], applied to rows and to columns; of
    several maps the sum of what each gives."""
    planes = x.permute(1, 0, 3, 2).contiguous()  # rows first and columns last: each map is two matrix products
    side = len(planes)
    total = torch.zeros_like(planes)
    for matrix in maps:
        total += ((matrix @ planes.view(side, -1)).view(-1, side) @ matrix.T).view(planes.shape)
    return total.permute(1, 0, 3, 2).contiguous()


def gaussian_filter(sigma: float, side: int, fold: Fold, truncate: float, device: torch.device) -> Tensor:
    """Return the map, float64 [side, side], of a normal filter of `sigma` pixels, cut at `truncate` times that."""
    radius = int(truncate * sigma + 0.5)
    steps = torch.arange(-radius, radius + 1, device=device)
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2) if radius else steps.double() + 1
    places = fold(torch.arange(side, device=device)[:, None] + steps, side)
    empty = torch.zeros(side, side, dtype=torch.float64, device=device)
    return empty.scatter_add_(1, places, (weights / weights.sum()).expand(side, -1))


def zoom(factor: float, side: int, device: torch.device) -> Tensor:
    """Return the map, float64 [side, side], that enlarges the middle of an image: linear, first and last pixel of what
    is seen on those of the result, of which the middle is taken."""
    seen = math.ceil(side / factor)
    size = round(seen * factor)
    first = (side - seen) // 2
    rows = torch.arange(side, device=device)
    places = (rows + (size - side) // 2).double() * ((seen - 1) / (size - 1))
    low = places.floor().clamp(max=seen - 2)
    above = places - low
    matrix = torch.zeros(side, side, dtype=torch.float64, device=device)
    matrix[rows, first + low.long()] = 1 - above
    matrix[rows, first + low.long() + 1] += above
    return matrix


def between(x: Tensor, rows: Tensor, columns: Tensor, fold: Fold) -> Tensor:
    """Return the values of images [n, side, side, C] at float places [n, side, side], linear between the pixels."""
    side, images = x.shape[1], torch.arange(len(x), device=x.device)[:, None, None]
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    ends = [[fold(start.long() + step, side) for step in (0, 1)] for start in (top, left)]
    upper, lower = (x[images, row, ends[1][0]] * (1 - right) + x[images, row, ends[1][1]] * right for row in ends[0])
    return upper * (1 - down) + lower * down


def smear(x: Tensor, angles: Tensor, radius: float, sigma: float) -> Tensor:
    """Return images [n, side, side, C], each smeared along a line at its angle, float64 [n] in degrees.

    As ImageMagick's motion blur has it: the mean over whole pixels on one side of each, half a normal curve of `sigma`
    pixels being their weights; beyond the border lies the border pixel.
    """
    steps = torch.arange(2 * math.ceil(radius) + 1, device=x.device, dtype=torch.float64)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).tolist()
    turns = torch.deg2rad(angles)[:, None]
    right, down = ((steps * part - 0.5).ceil().long() for part in (turns.cos(), turns.sin()))
    side, images = x.shape[1], torch.arange(len(x), device=x.device)[:, None, None]
    pixels = torch.arange(side, device=x.device)
    total = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        rows, columns = (nearest(pixels + shift[:, step, None], side) for shift in (down, right))
        total += weight * x[images, rows[:, :, None], columns[:, None, :]]
    return total


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers, float64, of the form of `like`."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device=like.device)


def uniform(like: Tensor, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Draw uniform numbers, float64, of the form of `like`."""
    drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=like.device)
    return drawn * (high - low) + low
