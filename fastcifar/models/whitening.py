"""Patch whitening: a frozen convolution whose filters decorrelate the pixels of 3x3 patches (Page 2019; Coates and Ng
2012)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.kernels import plain_batch, wants_gradient, whiten
from fastcifar.kernels.norm_act_pool.reference import with_border
from fastcifar.kernels.operators import autocast_dtype, needs_plain_torch

_PIXELS = {"cpu": 500 * 32**2, "cuda": 20_000 * 32**2}
"""Pixels at a time: on a CPU 6 MB as float32, on a GPU 250 MB, in fewer launches."""
_ACROSS = 32
"""Places of a patch across that are summed together: of more, most products would be of pixels that no patch has."""


class PatchWhitening(nn.Conv2d):
    """A frozen `size` x `size` convolution from `channels` to channels * size**2 outputs.

    `fit` computes the filters: the eigenvectors of the uncentered second moment of all patches, each divided by
    sqrt(eigenvalue + eps), so that the covariance of its outputs is diag(eigenvalue / (eigenvalue + eps)).

    channels, size: input channels, and the side of a patch in pixels.
    eps: added to each eigenvalue.
    padding: None is "same" padding for an odd `size`.
    negatives: add the negative of each filter after all filters, twice as many outputs (airbench).
    bias: add a trained bias, at first 0.
    """

    wide_vectors: ClassVar[bool] = True

    def __init__(
        self,
        channels: int = 3,
        size: int = 3,
        eps: float = 1e-2,
        *,
        padding: int | None = None,
        negatives: bool = False,
        bias: bool = False,
    ) -> None:
        padding = size // 2 if padding is None else padding
        super().__init__(channels, channels * size**2 * (2 if negatives else 1), size, padding=padding, bias=bias)
        self.eps, self.negatives = eps, negatives
        self.weight.requires_grad_(False)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def fit(self, images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the filters from `images`, uint8 `[N, H, W, C]`, normalized by `mean` and `std` (0 to 255 units)."""
        moment = patch_second_moment(images, mean, std, self.kernel_size[0])
        filters = whitening_filters(moment, self.eps)
        if self.negatives:
            filters = torch.cat([filters, -filters])
        self.weight.copy_(filters.view_as(self.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)  # flat buffers keep it in float32
        return F.conv2d(x, self.weight, bias, padding=self.padding)

    def in_one_pass(self, x: torch.Tensor) -> bool:
        """Return True if `activated` passes over the images `x` once: where no gradient is needed, outside of autocast,
        and where plain torch need not be."""
        plain = autocast_dtype(x.device.type) is not None or needs_plain_torch()
        return not (plain or wants_gradient(x, self.weight, self.bias))

    def activated(self, x: torch.Tensor, activation: str, border: bool = False) -> torch.Tensor:
        """Return `activation` ("gelu", "silu" or "relu") of `self(x)`, for a whitening without padding; with `border` a
        row of zeros is above each image and a column of zeros to its left."""
        if self.in_one_pass(x):
            return whiten(x, self.weight, self.bias, activation, border)
        return with_border(getattr(F, activation)(self(x)), border)

    def followed_by(self, pointwise: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        """Return `pointwise(self(x))` for a 1x1 convolution, both without bias, as one convolution by the composed
        filters. The whitened image is never made: its 27 channels would be 54 bytes a pixel in half precision, where
        tensor cores want a multiple of 16."""
        size = self.kernel_size[0]
        patches = self.weight.permute(0, 2, 3, 1).flatten(1)  # in memory order: no copy
        filters = pointwise.weight.flatten(1) @ patches
        filters = filters.view(-1, size, size, self.in_channels).permute(0, 3, 1, 2)
        return F.conv2d(x, filters, padding=self.padding)


def patch_second_moment(images: torch.Tensor, mean: Sequence[float], std: Sequence[float], size: int) -> torch.Tensor:
    """Return the uncentered second moment of all `size` x `size` patches of the normalized uint8 `images`
    `[N, H, W, C]`, divided by the number of patches less one: float64 `[D, D]` on the CPU, D = C * size**2 in the order
    (C, row, column)."""
    height, width, channels = images.shape[1:]
    tall, wide = height - size + 1, width - size + 1  # places of a patch down and across
    # Pixels in rows i and j of a patch: their products, summed over all patches, are those of whole rows of pixels,
    # j - i apart, without the rows at the top and bottom that are no patch's i-th and j-th. These are large matrix
    # products that need no patch laid out: a third of the time of unfolding.
    exact = {"dtype": torch.float64, "device": images.device}
    strips = [slice(start, min(start + _ACROSS, wide) + size - 1) for start in range(0, wide, _ACROSS)]
    pairs = [torch.zeros(size, size, *[(strip.stop - strip.start) * channels] * 2, **exact) for strip in strips]
    at_once = max(1, _PIXELS[images.device.type] // (height * width))
    for chunk in torch.arange(len(images), device=images.device).split(at_once):
        pixels = plain_batch(images, chunk, mean, std, torch.float32)
        for strip, sums in zip(strips, pairs, strict=True):
            rows = pixels[:, :, :, strip].permute(2, 0, 3, 1).reshape(height, len(chunk), -1)
            for apart in range(size):
                whole = _products(rows[: height - apart], rows[apart:])
                for i in range(size - apart):
                    j = i + apart
                    top = _products(rows[:i], rows[apart:j])
                    bottom = _products(rows[i + tall : height - apart], rows[j + tall :])
                    sums[i, j] += whole - top - bottom
    moment = torch.zeros(size, size, size * channels, size * channels, **exact)
    for sums in pairs:
        for column in range(sums.shape[2] // channels - size + 1):
            pixels_of_patch = slice(column * channels, (column + size) * channels)
            moment += sums[:, :, pixels_of_patch, pixels_of_patch]
    for i in range(size):
        for j in range(i):
            moment[i, j] = moment[j, i].T
    by_pixel = moment.view(size, size, size, channels, size, channels).permute(3, 0, 2, 5, 1, 4)
    return (by_pixel.reshape(channels * size**2, -1) / (len(images) * tall * wide - 1)).cpu()


def _products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Sum products over two dimensions: `[h, n, a]` and `[h, n, b]` to `[a, b]`; zeros for h = 0."""
    return one.flatten(0, 1).T @ other.flatten(0, 1)


def whitening_filters(moment: torch.Tensor, eps: float) -> torch.Tensor:
    """Return whitening filters, float64 rows of `[D, D]`, the largest eigenvalue first, from the second moment
    `[D, D]`.

    Solved on the CPU in float64: it is small, and a GPU's solver takes long to load. An eigenvector's sign is
    arbitrary: here its largest entry is positive, so that the filters are the same everywhere.
    """
    values, vectors = torch.linalg.eigh(moment.double().cpu())
    filters = vectors.T.flip(0)
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    return filters * largest.sign() / (values.flip(0)[:, None] + eps).sqrt()
