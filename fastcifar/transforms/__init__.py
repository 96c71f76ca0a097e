"""Random changes to a batch of images, one line each, for any training loop.

    x = random_crop(x, 32, pad=4)
    x = random_flip(x)
    x = cutout(x, 8)
    x = color_jitter(x, brightness=0.4, saturation=0.4)
    x = normalize(x, dataset.mean, dataset.std)
    x, targets = mixup(x, labels, classes=10)

A batch is uint8 images `[N, H, W, 3]`, as in a `Split`, or floating ones `[N, 3, H, W]`, as networks take them. The
result is new, of the same form and on the same device. Each image gets its own random choice from `generator`, by
default torch's global one of the images' device. All raise UserError for other images. `train` and `Loader` make all of
these changes in bulk instead, from choices that an `EpochPlan` draws.

Changes of colors take floating images that are normalized by `mean` and `std`, which are in 0..255 units; by default
the images are of 0 to 1. What is said of normalized images holds for bytes with mean 127.5 and deviation 63.75.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from fastcifar.errors import UserError, brief
from fastcifar.kernels.augment import change_pixels, in_boxes, plain_batch, reflect, vector
from fastcifar.kernels.mix import cutmix_choices, mix, mixup_choices
from fastcifar.recipes.augmentation import LEAST_ALPHA, by_channel
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.recipes.transforms import TransformConfig
from fastcifar.recipes.transforms.color import ColorJitterConfig, GrayscaleConfig, RandAugmentConfig
from fastcifar.recipes.transforms.gaussian_blur import GaussianBlurConfig
from fastcifar.recipes.transforms.random_erasing import RandomErasingConfig
from fastcifar.registry import resolve

__all__ = [
    "color_jitter",
    "cutmix",
    "cutout",
    "gaussian_blur",
    "grayscale",
    "jitter",
    "mixup",
    "normalize",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_flip",
]

_BLACK, _RANGE = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
"""The mean and deviation that make 0 to 1 of pixels."""
_MIDDLE, _QUARTER = (127.5, 127.5, 127.5), (63.75, 63.75, 63.75)
_ALPHA = Declaration(at_least=LEAST_ALPHA)


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
    fills = Declaration(at_least=0, at_most=255) if x.dtype == torch.uint8 else Declaration()
    size, fill = checked("size", size, int), checked("fill", fill, float, fills)
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
    device = _device(x, generator)
    spread = (
        torch.rand(2, len(x), 1, 1, 1, generator=generator, device=device, dtype=torch.float32).mul_(2).sub_(1).to(x)
    )
    return (x + brightness * spread[0]) * (1 + contrast * spread[1])


def color_jitter(
    x: torch.Tensor,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    generator: torch.Generator | None = None,
    *,
    mean: Sequence[float] = _BLACK,
    std: Sequence[float] = _RANGE,
) -> torch.Tensor:
    """Change each image's brightness, contrast, saturation and hue, in this order, by random factors as torchvision's
    ColorJitter does.

    x: images.
    brightness, contrast, saturation: of b, a factor is uniform from 1 - b (at least 0) to 1 + b.
    hue: hues are turned by a share of the circle from -hue to hue; at most 0.5.
    mean, std: of floating images, by which they are normalized.
    """
    return _changed(ColorJitterConfig(brightness, contrast, saturation, hue), x, generator, mean, std)


def grayscale(
    x: torch.Tensor,
    share: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    mean: Sequence[float] = _BLACK,
    std: Sequence[float] = _RANGE,
) -> torch.Tensor:
    """Take the color from each image with chance `share` (Chen 2020, SimCLR); `mean`, `std`: see `color_jitter`."""
    return _changed(GrayscaleConfig(share), x, generator, mean, std)


def rand_augment(
    x: torch.Tensor,
    operations: int = 2,
    magnitude: float = 9.0,
    generator: torch.Generator | None = None,
    *,
    mean: Sequence[float] = _BLACK,
    std: Sequence[float] = _RANGE,
) -> torch.Tensor:
    """Apply to each image random operations on colors (Cubuk 2019, RandAugment): nothing, autocontrast, equalize,
    posterize, solarize, color, contrast, brightness or sharpness, as torchvision's RandAugment does. What each takes is
    rounded to whole numbers of pixels first, so that no gradient passes.

    x: images.
    operations: how many, 1 to 4, one after the other.
    magnitude: their strength, 0 to 30.
    mean, std: see `color_jitter`.
    """
    return _changed(RandAugmentConfig(operations, magnitude), x, generator, mean, std)


def gaussian_blur(
    x: torch.Tensor,
    share: float = 0.5,
    sigma: tuple[float, float] = (0.1, 2.0),
    side: int = 3,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Blur each image with chance `share` (Chen 2020, SimCLR).

    x: images.
    sigma: least and greatest standard deviation in pixels.
    side: of the filter, an odd number; the image's edges are mirrored.
    """
    return _changed(GaussianBlurConfig(share, sigma, side), x, generator)


def random_erasing(
    x: torch.Tensor,
    share: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 3.3),
    fill: Literal["zero", "random"] = "zero",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Erase a rectangle at a random place inside each image with chance `share` (Zhong 2017).

    x: images, normalized or bytes.
    area: least and greatest share of the image.
    aspect: least and greatest height, as a multiple of the width.
    fill: "zero", the mean color of normalized images, or "random", normal noise.
    """
    return _changed(RandomErasingConfig(share, area, aspect, fill), x, generator)


def mixup(
    x: torch.Tensor, labels: torch.Tensor, classes: int, alpha: float = 0.2, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch mixed with itself in a random order (Zhang 2017), and its targets, float32 `[N, classes]`, for
    torch's cross-entropy.

    x: images.
    labels: int64 `[N]`, -1 for an unlabeled image, whose targets are 0; or targets `[N, classes]`.
    classes: their number. On a GPU, where to look would be to wait, other labels are as -1.
    alpha: the share of the other image, one for the batch, is of the distribution Beta(alpha, alpha); 0.001 or more.
    """
    return _mixed(mixup_choices, x, labels, classes, alpha, generator)


def cutmix(
    x: torch.Tensor, labels: torch.Tensor, classes: int, alpha: float = 1.0, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch with a square of each image out of another (Yun 2019), and its targets, float32 `[N, classes]`.
    The area of the square is a share of the image of the distribution Beta(alpha, alpha). Else as `mixup`."""
    return _mixed(cutmix_choices, x, labels, classes, alpha, generator)


def _changed(
    config: TransformConfig,
    x: torch.Tensor,
    generator: torch.Generator | None,
    mean: Sequence[float] = _BLACK,
    std: Sequence[float] = _RANGE,
) -> torch.Tensor:
    """Return `x` changed by a recipe's transform."""
    _sides(x)
    mean, std = by_channel("mean", mean), by_channel("std", std, above=0)
    device = _device(x, generator)
    numbers = torch.rand(len(x), config.draws, generator=generator, device=device, dtype=torch.float32).to(x.device)

    def change(images: torch.Tensor) -> torch.Tensor:
        return resolve(type(config).function)(images, numbers, config)

    if x.dtype == torch.uint8:
        if config.of_pixels:
            return _bytes(change(x.permute(0, 3, 1, 2).contiguous().float()))
        return _bytes(change(normalize(x, _MIDDLE, _QUARTER)) * _QUARTER[0] + _MIDDLE[0])
    changed = change_pixels(change, x, mean, std) if config.of_pixels else change(x)
    return _in_form_of(x, changed)


def _mixed(
    choices: Callable[..., torch.Tensor],
    x: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    alpha: float,
    generator: torch.Generator | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and targets mixed by one of the `choices` of `kernels.mix`."""
    _sides(x)
    device = _device(x, generator)
    classes = checked("classes", classes, int, Declaration(at_least=1))
    targets = _targets(labels, len(x), classes).to(x.device)
    choice = choices(checked("alpha", alpha, float, _ALPHA), 1, generator, device)[0].to(x.device)
    order = torch.randperm(len(x), generator=generator, device=device).to(x.device)
    images = x.permute(0, 3, 1, 2).float() if x.dtype == torch.uint8 else x
    mixed, share = mix(images, images[order], choice)
    targets = torch.lerp(targets, targets[order], share)
    return _bytes(mixed) if x.dtype == torch.uint8 else _in_form_of(x, mixed), targets


def _targets(labels: torch.Tensor, count: int, classes: int) -> torch.Tensor:
    """Return the targets of labels or of targets, float32 `[count, classes]`. Raises UserError for others, on the CPU
    also for labels that are no classes."""
    allowed = f"allowed: int64 [{count}], or targets [{count}, {classes}]"
    if not isinstance(labels, torch.Tensor):
        raise UserError(f"labels are of type {type(labels).__name__}; {allowed}")
    shapes = ((count, classes),) if labels.is_floating_point() else ((count,), (count, classes))
    if labels.is_complex() or labels.dtype == torch.bool or tuple(labels.shape) not in shapes:
        raise UserError(f"labels are {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}; {allowed}")
    if labels.ndim == 2:
        return labels.float()
    if labels.device.type == "cpu" and count and not -1 <= labels.min() <= labels.max() < classes:
        raise UserError(f"labels are {labels.min()} to {labels.max()}; allowed: -1 to {classes - 1}")
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def _bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Return floating pixels `[N, 3, H, W]` as bytes `[N, H, W, 3]`."""
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _in_form_of(x: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return `images` in the memory format of `x`."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def normalize(
    x: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return (x - mean) / std, floating `[N, 3, H, W]`, of uint8 images too. Nothing in it is random.

    x: images.
    mean, std: of red, green and blue, in the units of `x`: 0 to 255 for uint8 images.
    dtype: of the result; by default that of `x`, float32 for uint8 images.
    """
    _sides(x)
    if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
        raise UserError(f"dtype is {brief(dtype)}; allowed: torch.float32, or another floating one")
    mean, std = by_channel("mean", mean), by_channel("std", std, above=0)
    if x.dtype == torch.uint8:
        indices = torch.arange(len(x), device=x.device)
        return plain_batch(x.contiguous(), indices, mean, std, dtype or torch.float32)
    middle, factor = (vector(numbers, x)[:, None, None] for numbers in (mean, [1 / value for value in std]))
    return ((x - middle) * factor).to(dtype or x.dtype)


def _sides(x: torch.Tensor) -> tuple[int, int]:
    """Return height and width. Raises UserError for anything but a batch of images."""
    if not isinstance(x, torch.Tensor):
        raise UserError(f"x is of type {type(x).__name__}; allowed: a tensor, as torch.from_numpy(x) makes of an array")
    is_bytes = x.dtype == torch.uint8
    if x.ndim != 4 or x.shape[3 if is_bytes else 1] != 3 or not (is_bytes or x.is_floating_point()):
        kind = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        raise UserError(f"x is {kind}; allowed: uint8 [N, H, W, 3] or floating [N, 3, H, W]")
    _, height, width, _ = _pixels(x).shape
    return height, width


def _pixels(x: torch.Tensor) -> torch.Tensor:
    """Return a view `[N, H, W, 3]`."""
    return x if x.dtype == torch.uint8 else x.permute(0, 2, 3, 1)


def _device(x: torch.Tensor, generator: torch.Generator | None) -> torch.device:
    """Return the device that random numbers are drawn on."""
    if not isinstance(generator, torch.Generator | None):
        raise UserError(f"generator is of type {type(generator).__name__}; allowed: a torch.Generator, or None")
    return x.device if generator is None else generator.device


def _random_below(high: int, x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Draw a whole number from 0 to `high` - 1 for each image: int64 `[N, 1]`."""
    device = _device(x, generator)
    return torch.randint(high, (len(x), 1), generator=generator, device=device).to(x.device)
