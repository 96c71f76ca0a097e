"""Blur. Each function takes images uint8 `[N, side, side, 3]`, its parameters and a generator, and returns such
images."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

from fastcifar.corruptions.pixels import (
    along_both,
    gaussian_filter,
    nearest,
    smear,
    to_bytes,
    to_unit,
    uniform,
    zoom,
)


def gaussian_blur(images: Tensor, sigma: float, generator: Generator) -> Tensor:
    """Filter by a normal curve of `sigma` pixels."""
    return to_bytes(_filtered(to_unit(images), sigma))


def defocus_blur(images: Tensor, parameters: tuple[float, float], generator: Generator) -> Tensor:
    """Take the mean over a disk of a radius, itself smoothed by a normal curve of three pixels."""
    radius, sigma = parameters
    reach = math.floor(radius) + 1
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64, device=images.device)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).double()
    smooth = torch.exp(-0.5 * (torch.arange(-1, 2, dtype=torch.float64, device=images.device) / sigma) ** 2)
    smooth /= smooth.sum()
    kernel = functional.conv2d((disk / disk.sum())[None, None], smooth[:, None].mul(smooth)[None, None], padding=1)
    planes = to_unit(images).permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    planes = functional.conv2d(functional.pad(planes, [reach] * 4, mode="reflect"), kernel)
    return to_bytes(planes.view(-1, 3, *images.shape[1:3]).permute(0, 2, 3, 1).contiguous())


def glass_blur(images: Tensor, parameters: tuple[float, int], generator: Generator) -> Tensor:
    """Filter, replace each pixel but those near the border by itself or a neighbor above or to the left, in `rounds`,
    and filter again.

    The paper means pixels to change places. Its program goes through them from the last to the first and writes one
    over the other, since numpy's slices are views; the archive is made so, and it is one choice for all pixels at once.
    """
    sigma, rounds = parameters
    x = to_bytes(_filtered(to_unit(images), sigma))
    side, which = x.shape[1], torch.arange(len(x), device=x.device)[:, None, None]
    inner = torch.arange(2, side, device=x.device)
    for _ in range(rounds):
        shape = (2, len(x), side - 2, side - 2)
        back = torch.randint(2, shape, generator=generator, device=x.device)
        moved = x[which, inner[:, None] - back[0], inner - back[1]]
        x = x.clone()
        x[:, 2:, 2:] = moved
    return to_bytes(_filtered(to_unit(x), sigma))


def motion_blur(images: Tensor, parameters: tuple[float, float], generator: Generator) -> Tensor:
    """Smear each image along a line, within 45 degrees of a row."""
    radius, sigma = parameters
    angles = uniform(images[:, 0, 0, 0], generator, -45, 45)
    return smear(images.double(), angles, radius, sigma).round().to(torch.uint8)


def zoom_blur(images: Tensor, largest: float, generator: Generator) -> Tensor:
    """Take the mean of the image and its zooms by 1, 1.01, and so on up to `largest`."""
    x, steps = to_unit(images), range(round((largest - 1) * 100) + 1)
    zooms = along_both(x, *(zoom(1 + step * 0.01, x.shape[1], x.device) for step in steps))
    return to_bytes((x + zooms) / (len(steps) + 1))


def _filtered(x: Tensor, sigma: float) -> Tensor:
    return along_both(x, gaussian_filter(sigma, x.shape[1], nearest, 4, x.device))
