"""Random changes to a batch of images, one line each, for any training loop.

    x = random_crop(x, 32, pad=4)
    x = random_flip(x)
    x = cutout(x, 8)
    x = normalize(x, dataset.mean, dataset.std)

A batch is uint8 images `[N, H, W, 3]`, as in a `Split`, or floating ones `[N, 3, H, W]`, as networks take them. The
result is new, of the same form and on the same device. Each image gets its own random choice from `generator`, by
default torch's global one of the images' device. All raise UserError for other images. `train` and `Loader` make all of
these changes in one pass instead, from choices that an `EpochPlan` draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastcifar.errors import UserError
from fastcifar.kernels.augment import in_boxes, plain_batch, reflect, vector
from fastcifar.recipes.augmentation import by_channel
from fastcifar.recipes.declare import checked

__all__ = ["cutout", "jitter", "normalize", "random_crop", "random_flip"]


def random_crop(x: torch.Tensor, size: int, pad: int = 4, generator: torch.Generator | None = None) -> torch.Tensor:
    """Crop `size` x `size` pixels out of each image at a uniformly random place (Page, How to train your ResNet, 2018).

    The crop may extend over the edge by `pad` pixels, where the image is mirrored at its edge pixels, which are not
    repeated. Raises UserError for a size or pad that the images do not hold.
    """
    height, width = _sides(x)
    size, pad = checked("size", size, int), checked("pad", pad, int)
    if not 0 <= pad < min(height, width):
        raise UserError(f"pad is {pad}; allowed: 0 to {min(height, width) - 1}, inside the image")
    if not 1 <= size <= min(height, width) + 2 * pad:
        raise UserError(f"size is {size}; allowed: 1 to {min(height, width) + 2 * pad}, the image with its border")
    steps = torch.arange(size, device=x.device)
    rows, columns = (
        reflect(_random_below(side - size + 2 * pad + 1, x, generator) - pad + steps, side) for side in (height, width)
    )
    images = torch.arange(len(x), device=x.device)[:, None, None]
    crops = _pixels(x)[images, rows[:, :, None], columns[:, None, :]]
    if x.dtype == torch.uint8:
        return crops
    crops = crops.permute(0, 3, 1, 2)
    return crops.contiguous() if x.is_contiguous() else crops


def random_flip(x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Mirror each image left to right, with chance 1/2."""
    _sides(x)
    flips = _random_below(2, x, generator).bool()[:, :, None, None]
    return torch.where(flips, x.flip(2 if x.dtype == torch.uint8 else 3), x)


def cutout(x: torch.Tensor, size: int, generator: torch.Generator | None = None, *, fill: float = 0) -> torch.Tensor:
    """Set a square of `size` x `size` pixels to `fill`, at a uniformly random place inside each image.

    From DeVries and Taylor (2017), whose square may overlap the edge; here, as in Page's (2018), it lies inside. In
    normalized images 0 is the mean color. Raises UserError for a size that the images do not hold.
    """
    height, width = _sides(x)
    size, fill = checked("size", size, int), checked("fill", fill, float)
    if not 0 <= size <= min(height, width):
        raise UserError(f"size is {size}; allowed: 0 to {min(height, width)}, the image's side")
    corners = [_random_below(side - size + 1, x, generator) for side in (height, width)]
    boxes = torch.cat([*corners, *(torch.full_like(corner, size) for corner in corners)], dim=1)
    inside = in_boxes(boxes, height, width).unsqueeze(3 if x.dtype == torch.uint8 else 1)
    return x.clone().masked_fill_(inside, fill)  # a clone keeps the memory format


def jitter(
    x: torch.Tensor, brightness: float, contrast: float = 0.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Change each floating, normalized image x to (x + b) * c, with b uniform in -`brightness` to `brightness` and c in
    1 - `contrast` to 1 + `contrast` (hiverge, 2025)."""
    _sides(x)
    brightness, contrast = checked("brightness", brightness, float), checked("contrast", contrast, float)
    if x.dtype == torch.uint8:
        raise UserError("x is uint8; allowed: floating images, as normalize makes them")
    device = x.device if generator is None else generator.device
    spread = (
        torch.rand(2, len(x), 1, 1, 1, generator=generator, device=device, dtype=torch.float32).mul_(2).sub_(1).to(x)
    )
    return (x + brightness * spread[0]) * (1 + contrast * spread[1])


def normalize(
    x: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return (x - mean) / std, floating `[N, 3, H, W]`, of uint8 images too. Nothing in it is random.

    x: images.
    mean, std: of red, green and blue, in the units of `x`: 0 to 255 for uint8 images.
    dtype: of the result; by default that of `x`, float32 for uint8 images.
    """
    _sides(x)
    mean, std = by_channel("mean", mean), by_channel("std", std, above=0)
    if x.dtype == torch.uint8:
        indices = torch.arange(len(x), device=x.device)
        return plain_batch(x.contiguous(), indices, mean, std, dtype or torch.float32)
    middle, factor = (vector(numbers, x)[:, None, None] for numbers in (mean, [1 / value for value in std]))
    return ((x - middle) * factor).to(dtype or x.dtype)


def _sides(x: torch.Tensor) -> tuple[int, int]:
    """Return height and width. Raises UserError for anything but a batch of images."""
    is_bytes = x.dtype == torch.uint8
    if x.ndim != 4 or x.shape[3 if is_bytes else 1] != 3 or not (is_bytes or x.is_floating_point()):
        kind = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        raise UserError(f"x is {kind}; allowed: uint8 [N, H, W, 3] or floating [N, 3, H, W]")
    _, height, width, _ = _pixels(x).shape
    return height, width


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """Return a view `[N, H, W, 3]`."""
    return x if x.dtype == torch.uint8 else x.permute(0, 2, 3, 1)


def _random_below(high: int, x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Draw a whole number from 0 to `high` - 1 for each image: int64 `[N, 1]`."""
    device = x.device if generator is None else generator.device
    return torch.randint(high, (len(x), 1), generator=generator, device=device).to(x.device)
