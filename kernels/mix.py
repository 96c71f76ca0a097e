"""Images mixed with others of their batch: mixup (Zhang 2017) and CutMix (Yun 2019), in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.kernels.augment import in_boxes

_standard_gamma = torch._standard_gamma  # pyright: ignore[reportPrivateImportUsage]  (torch's public one has no generator)
Where = str | torch.device


def beta(alpha: float, count: int, generator: torch.Generator | None = None, device: Where = "cpu") -> Tensor:
    """Draw `count` numbers of the distribution Beta(alpha, alpha), float32, on `device`, the generator's.

    It is that of a / (a + b) for a and b of Gamma(alpha), which are made of Gamma(alpha + 1) by a power (Marsaglia and
    Tsang 2000), in logarithms, as for a small alpha both are below the least float."""
    uniform = torch.rand(2, count, generator=generator, dtype=torch.float64, device=device)
    gamma = _standard_gamma(torch.full_like(uniform, alpha + 1), generator=generator)
    one, other = gamma.log() + (1 - uniform).log() / alpha
    return torch.sigmoid(one - other).float()


def mixup_choices(alpha: float, count: int, generator: torch.Generator | None = None, device: Where = "cpu") -> Tensor:
    """Draw the choices of `count` batches for `mix`, float32 [count, 4], by mixup: a share of Beta(alpha, alpha)."""
    share = beta(alpha, count, generator, device)
    return torch.stack([share, *torch.zeros(3, *share.shape, dtype=share.dtype, device=share.device)], dim=1)


def cutmix_choices(alpha: float, count: int, generator: torch.Generator | None = None, device: Where = "cpu") -> Tensor:
    """Draw the choices of `count` batches for `mix`, float32 [count, 4], by CutMix: a square of a share of the image of
    Beta(alpha, alpha), around a uniformly random place."""
    side = beta(alpha, count, generator, device).sqrt_()
    places = torch.rand(2, count, generator=generator, dtype=side.dtype, device=side.device)
    return torch.stack([torch.zeros_like(side), side, *places], dim=1)


def mix(images: Tensor, others: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Return `images` [B, C, H, W] mixed with `others`, and the share of the others in the targets, float32 [].

    choice: float32 [4], one for all images: the share of the others in every pixel; the side of a square, as a share of
        the image's, in which they are alone; and the row and the column of its center, from 0 up to 1. The square is
        cut off at the image's edge, and its share is that of its pixels, as in Yun's program.

    Where the others would have more than half, the two change places, so that an image has the greater share in what
    takes its place: over a batch in random order that is the same.
    """
    height, width = images.shape[2:]
    share, side, *center = choice.unbind(0)
    edges = []
    for length, place in zip((height, width), center, strict=True):
        middle, cut = (place * length).floor(), (side * length).floor()
        first = middle - (cut / 2).floor()
        edges.append((first.clamp(min=0), (middle + (cut / 2).floor()).clamp(max=length)))
    (top, bottom), (left, right) = edges
    inside = in_boxes(torch.stack([top, left, bottom - top, right - left])[None], height, width)
    shares = torch.where(inside, 1.0, share)
    share = shares.mean()
    turned = share > 0.5
    shares, share = torch.where(turned, 1 - shares, shares), torch.where(turned, 1 - share, share)
    return torch.lerp(images, others, shares.to(images.dtype)), share
