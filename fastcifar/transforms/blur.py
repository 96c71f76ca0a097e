"""Gaussian blur, in bulk."""

from __future__ import annotations

import torch

from fastcifar.kernels.augment import reflect
from fastcifar.recipes.transforms.gaussian_blur import GaussianBlurConfig


def blur(images: torch.Tensor, numbers: torch.Tensor, config: GaussianBlurConfig) -> torch.Tensor:
    """Blur the chosen images `[B, 3, H, W]`, each by its own Gaussian; `numbers` `[B, 2]`.

    The filter is a Gaussian at whole pixels, its sum 1, as torchvision's; images are mirrored at their edge pixels.
    Sums of shifted images: a convolution has one filter for all images of a batch."""
    least, greatest = config.sigma
    chosen, place = numbers[:, :, None, None, None].unbind(1)
    sigma = least + (greatest - least) * place
    reach = config.side // 2
    shares = [torch.exp(-(0.5 * (step / sigma) ** 2)) for step in range(reach + 1)]
    total = shares[0] + 2 * sum(shares[1:])
    shares = [(share / total).to(images.dtype) for share in shares]
    blurred = images
    for axis in (2, 3):
        side = images.shape[axis]
        places = torch.arange(-reach, side + reach, device=images.device)
        padded = blurred.index_select(axis, reflect(places, side))
        blurred = blurred * shares[0]
        for step, share in enumerate(shares[1:], start=1):
            both = padded.narrow(axis, reach - step, side) + padded.narrow(axis, reach + step, side)
            blurred = torch.addcmul(blurred, both, share)
    return torch.where(chosen < config.share, blurred, images)
