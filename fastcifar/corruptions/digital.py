"""Digital changes. Each function takes images uint8 `[N, side, side, 3]`, its parameters and a generator, and returns
such images."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Generator, Tensor

from fastcifar.corruptions.pixels import (
    along_both,
    between,
    gaussian_filter,
    mirror,
    symmetric,
    to_bytes,
    to_unit,
    uniform,
)


def brightness(images: Tensor, more: float, generator: Generator) -> Tensor:
    """Add to the value of HSV, the largest channel; hue and saturation stay, so that all channels grow alike."""
    x = to_unit(images)
    value = x.amax(3, keepdim=True)
    lighter = (value + more).clamp(0, 1)
    return to_bytes(torch.where(value > 0, x * (lighter / value), lighter))


def saturate(images: Tensor, parameters: tuple[float, float], generator: Generator) -> Tensor:
    """Multiply HSV's saturation and add to it. A gray pixel has the hue of red."""
    factor, more = parameters
    x = to_unit(images)
    value, least = x.amax(3, keepdim=True), x.amin(3, keepdim=True)
    spread = value - least
    saturation = torch.where(value > 0, spread / value, 0)
    away = torch.where(spread > 0, (value - x) / spread, torch.tensor([0.0, 1.0, 1.0]).to(x))
    return to_bytes(value * (1 - (saturation * factor + more).clamp(0, 1) * away))


def contrast(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Multiply the distance from the mean color of the image."""
    x = to_unit(images)
    means = x.mean((1, 2), keepdim=True)
    return to_bytes((x - means) * share + means)


def elastic_transform(images: Tensor, parameters: tuple[float, float, float], generator: Generator) -> Tensor:
    """Move three points at random and the image with them, then displace each pixel by smoothed random numbers."""
    strength, sigma, shift = parameters
    x, side = to_unit(images), images.shape[1]
    far, near = side // 2 + side // 3, side // 2 - side // 3
    points = torch.tensor([[far, far], [far, near], [near, near]], dtype=torch.float64, device=x.device)
    moved = points + side * uniform(points.expand(len(x), 3, 2), generator, -shift, shift)
    ones = torch.ones_like(moved[..., :1])
    back = torch.linalg.solve(torch.cat([moved, ones], 2), points.expand_as(moved))  # [N, 3, 2]: x, y, 1 to x, y
    rows, columns = torch.meshgrid(*[torch.arange(side, dtype=torch.float64, device=x.device)] * 2, indexing="ij")
    places = torch.stack([columns, rows, torch.ones_like(rows)], 2) @ back[:, None]
    x = between(x, places[..., 1], places[..., 0], mirror)
    right, down = (side * strength * uniform(places[..., :1], generator, -1, 1) for _ in range(2))
    if sigma:
        smooth = gaussian_filter(side * sigma, side, symmetric, 3, x.device)
        right, down = along_both(right, smooth), along_both(down, smooth)
    return to_bytes(between(x, rows + down[..., 0], columns + right[..., 0], symmetric))


def pixelate(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Shrink to this share of the side, each new pixel the mean of those whose middle it covers, and enlarge again;
    rounded after rows and after columns, as pillow does it."""
    side = images.shape[1]
    small = int(side * share)
    x = images.double()
    for size in (small, side):
        matrix = _boxes(x.shape[1], size, x.device)
        x = (torch.einsum("jw,nhwc->nhjc", matrix, x) + 0.5).floor()
        x = (torch.einsum("ih,nhwc->niwc", matrix, x) + 0.5).floor()
    return x.to(torch.uint8)


def _boxes(side: int, size: int, device: torch.device) -> Tensor:
    """Return the map, float64 [size, side], to the means over boxes, one pixel wide at least."""
    scale = side / size
    width = max(scale, 1)
    middles = (torch.arange(size, dtype=torch.float64, device=device)[:, None] + 0.5) * scale
    away = (torch.arange(side, device=device) + 0.5 - middles) / width
    inside = ((away > -0.5) & (away <= 0.5)).double()
    return inside / inside.sum(1, keepdim=True)


def jpeg_compression(images: Tensor, quality: int, generator: Generator) -> Tensor:
    """Write each image as JPEG and read it again, by pillow, on the CPU."""
    from PIL import Image

    found = []
    for image in images.cpu().numpy():
        with io.BytesIO() as file:
            Image.fromarray(image).save(file, "JPEG", quality=quality)
            found.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(found)).to(images.device)
