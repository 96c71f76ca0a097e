"""Changes of colors, in bulk: images float32 `[B, 3, H, W]` of 0 to 255, each by its own random numbers."""

from __future__ import annotations

import torch

from fastcifar.kernels.augment import vector
from fastcifar.recipes.transforms.color import ColorJitterConfig, GrayscaleConfig, RandAugmentConfig

_OPERATIONS = 9
_MOST = 30
"""The greatest magnitude of RandAugment."""


def color_jitter_pixels(images: torch.Tensor, numbers: torch.Tensor, config: ColorJitterConfig) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue; `numbers` `[B, 4]`. The factors are those of torchvision's
    ColorJitter, which draws the order of the four too."""
    brightness, contrast, saturation, turn = numbers[:, :, None, None, None].unbind(1)
    if config.brightness:
        images = (images * _factor(brightness, config.brightness)).clamp(0, 255)
    if config.contrast:
        images = _blend(_gray(images).mean((2, 3), keepdim=True), images, _factor(contrast, config.contrast))
    if config.saturation:
        images = _blend(_gray(images), images, _factor(saturation, config.saturation))
    return turn_hues(images, (2 * turn - 1) * config.hue) if config.hue else images


def grayscale_pixels(images: torch.Tensor, numbers: torch.Tensor, config: GrayscaleConfig) -> torch.Tensor:
    """Take the color from the chosen images; `numbers` `[B, 1]`."""
    return torch.where(numbers[:, :, None, None] < config.share, _gray(images), images)


def turn_hues(images: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Add `turn` `[B, 1, 1, 1]` to the hues in HSV, of which a circle is 1 (Smith 1978)."""
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = high - low
    red, green, blue = images.split(1, dim=1)
    parts = chroma.masked_fill(chroma == 0, 1)
    sixth = torch.where(high == green, 2 + (blue - red) / parts, 4 + (red - green) / parts)
    sixth = torch.where(high == red, (green - blue) / parts, sixth) + 6 * turn
    distance = (sixth + vector((5, 3, 1), images)[:, None, None]) % 6
    return high - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1)


def rand_augment_pixels(images: torch.Tensor, numbers: torch.Tensor, config: RandAugmentConfig) -> torch.Tensor:
    """Apply `config.operations` operations to each image; `numbers` `[B, 8]`. Each is computed for all images, for a
    captured step knows no choices; values are made those of bytes before each."""
    strength = config.magnitude / _MOST
    for place in range(0, 2 * config.operations, 2):
        which, less = (numbers[:, place] * _OPERATIONS).long(), numbers[:, place + 1] < 0.5
        images = _operation(images.round().clamp_(0, 255), which, less, strength)
    return images


def _operation(images: torch.Tensor, which: torch.Tensor, less: torch.Tensor, strength: float) -> torch.Tensor:
    """Apply to each image the operation `which`, int64 `[B]`; one with a sign is negative where `less`, bool `[B]`."""
    which, less = which[:, None, None, None], less[:, None, None, None]
    step = 2.0 ** round(4 * strength)
    gray = _gray(images).round()
    # The four that move each value away from another, or towards it:
    other = torch.where(which == 5, gray, 0)
    other = torch.where(which == 6, gray.mean((2, 3), keepdim=True).round(), other)
    other = torch.where(which == 8, _smooth(images), other)
    made = _blend(other, images, 1 + 0.9 * strength * (1 - 2 * less.to(images.dtype)))
    del other
    # One after the other, so that not all of them are in memory:
    made = torch.where(which == 0, images, made)
    made = torch.where(which == 1, _autocontrast(images), made)
    made = torch.where(which == 2, equalize(images), made)
    made = torch.where(which == 3, (images / step).floor() * step, made)
    return torch.where(which == 4, torch.where(images < 255 * (1 - strength), images, 255 - images), made)


def _autocontrast(images: torch.Tensor) -> torch.Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high == low
    return torch.where(flat, images, (images - low) * (255 / (high - low).masked_fill(flat, 1)))


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Spread the values of each channel, whole numbers, evenly over 0 to 255, as PIL's ImageOps.equalize does."""
    values = images.flatten(2).long().clamp(0, 255)  # [B, 3, H * W]; NaN too
    one = values.new_ones(()).expand_as(values)  # takes no memory
    counts = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, one)
    of_highest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - of_highest) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255).to(images.dtype)
    spread = table.gather(2, values).view(images.shape)
    return torch.where(step[..., None] > 0, spread, images)


def _smooth(images: torch.Tensor) -> torch.Tensor:
    """Return the means of 3 x 3 pixels in which the middle one counts five times; those at the edge stay (PIL's
    ImageFilter.SMOOTH)."""
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = ((sums + 4 * images[:, :, 1:-1, 1:-1]) / 13).round()
    return smooth


def _factor(number: torch.Tensor, spread: float) -> torch.Tensor:
    """Return what is uniform from 1 - `spread`, or 0, to 1 + `spread`."""
    low = max(0.0, 1 - spread)
    return low + (1 + spread - low) * number


def _gray(images: torch.Tensor) -> torch.Tensor:
    """Return the luma `[B, 1, H, W]` (ITU-R BT.601, as PIL's)."""
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _blend(other: torch.Tensor, images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(other.expand_as(images), images, factor).clamp(0, 255)
