"""Patch whitening: a frozen convolution whose filters decorrelate the pixels of 3x3 patches (Page 2019; Coates and Ng
2012)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.kernels import augment

# Images unfolded at a time: 10,000 at once would take 1.1 GB.
_CHUNK = 500


class PatchWhitening(nn.Conv2d):
    """A frozen `size` x `size` convolution without bias from `channels` to channels * size**2 outputs, "same" padding.

    `fit` computes the filters: the eigenvectors of the uncentred second moment of all patches, each divided by
    sqrt(eigenvalue + eps), so that the covariance of its outputs is diag(eigenvalue / (eigenvalue + eps)).
    """

    def __init__(self, channels: int = 3, size: int = 3, eps: float = 1e-2) -> None:
        super().__init__(channels, channels * size**2, size, padding=size // 2, bias=False)
        self.eps = eps
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the filters from `images`, uint8 `[N, H, W, C]`, normalised by `mean` and `std` (0 to 255 units)."""
        moment = patch_second_moment(images, mean, std, self.kernel_size[0])
        self.weight.copy_(whitening_filters(moment, self.eps).view_as(self.weight))


def patch_second_moment(images: torch.Tensor, mean: Sequence[float], std: Sequence[float], size: int) -> torch.Tensor:
    """The uncentred second moment, float64 `[D, D]` on the CPU, D = C * size**2, of all `size` x `size` patches of the
    normalised uint8 `images` `[N, H, W, C]`, divided by the number of patches less one; D in the order (C, row,
    column)."""
    total, count = 0.0, 0
    indices = torch.arange(len(images), device=images.device)
    for chunk in indices.split(_CHUNK):
        offsets = torch.zeros(len(chunk), 2, dtype=torch.int32, device=images.device)
        pixels = augment(images, chunk, offsets, mean=mean, std=std, out_dtype=torch.float32)
        patches = F.unfold(pixels.contiguous(), size)  # [n, D, patches of an image]
        total = total + (patches @ patches.transpose(1, 2)).double().sum(0)
        count += patches.shape[0] * patches.shape[2]
    return (total / (count - 1)).cpu()


def whitening_filters(moment: torch.Tensor, eps: float) -> torch.Tensor:
    """Whitening filters, rows of `[D, D]` float64, the largest eigenvalue first, from the second moment `[D, D]`.

    Solved on the CPU in float64: it is small, and a GPU's solver would first have to be woken. An eigenvector's sign is
    arbitrary: here its largest entry is positive, so that the filters are the same everywhere.
    """
    values, vectors = torch.linalg.eigh(moment.double().cpu())
    filters = vectors.T.flip(0)
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    return filters * largest.sign() / (values.flip(0)[:, None] + eps).sqrt()
