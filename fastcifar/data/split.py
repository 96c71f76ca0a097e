"""`Split`: labeled images on one device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from fastcifar.data.device import resolve_device
from fastcifar.errors import UserError


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 `[N, H, W, 3]` and their labels int64 `[N]`, -1 for an unlabeled image, on one device.

    Images that do not lie in this order in memory are copied. Raises UserError for other tensors."""

    images: torch.Tensor
    labels: torch.Tensor
    label_range: tuple[int, int] = field(init=False)
    """The smallest and the largest label; -1 and -1 where there are none, or on the meta device."""
    resident = "device"
    """Where the images lie: on the split's device; "host" or "disk" for a `KeptSplit`."""

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for name, value in (("images", images), ("labels", labels)):
            if not isinstance(value, torch.Tensor):
                raise UserError(f"{name} are of type {type(value).__name__}; allowed: a tensor")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(f"images are {_kind(images)}; allowed: uint8 [N, H, W, 3]")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise UserError(f"labels are {_kind(labels)}; allowed: int64 [{len(images)}], one for each image")
        if images.device != labels.device:
            raise UserError(f"images are on {images.device} and labels on {labels.device}; allowed: one device")
        object.__setattr__(self, "images", images.contiguous())
        self._take_labels(labels)

    def _take_labels(self, labels: torch.Tensor) -> None:
        object.__setattr__(self, "labels", labels.contiguous())
        known = len(labels) and not labels.is_meta
        low, high = torch.stack(labels.aminmax()).tolist() if known else (-1, -1)
        object.__setattr__(self, "label_range", (low, high))
        if low < -1:
            raise UserError(f"labels are {low} to {high}; allowed: 0 or more, and -1 for an unlabeled image")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({size_of(self)}, on {self.device})"

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(H, W, 3)`."""
        return tuple(self.images.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the images."""
        return len(self) * math.prod(self.image_shape)

    @property
    def side(self) -> int:
        """Height and width of the images in pixels. Raises UserError for images that are not square."""
        height, width, _ = self.image_shape
        if height != width:
            raise UserError(
                f"images are {height} by {width} pixels; allowed: square ones, as by --resize N (dataset.resize(N))"
            )
        return height

    @property
    def labeled(self) -> torch.Tensor:
        """True for each image that has a label: bool `[N]`."""
        return self.labels >= 0

    def to(self, device: str | torch.device) -> Split:
        """Return the same split on `device`, without a copy if it is there already. Raises UserError where there is no
        such device."""
        device = resolve_device(device) if str(device) != "meta" else device
        return Split(self.images.to(device), self.labels.to(device))

    def subset(self, indices: torch.Tensor) -> Split:
        """Return the images at `indices` (int64 `[n]`, or bool `[N]`), in that order."""
        indices = torch.as_tensor(indices, device=self.device)
        return Split(self.images[indices], self.labels[indices])

    def at(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images, uint8 `[n, H, W, 3]` on the device, and the places among them of those at `indices`, int64
        `[B]`: all images and `indices`, where they lie on the device; else those that are read for it."""
        return self.images, indices

    def loaded(self, device: torch.device) -> Split:
        """Return the split with all images in the memory of `device`; no copy is made of images that are there."""
        return self.to(device)

    def first(self, count: int) -> torch.Tensor:
        """Return the first `count` images on the device, or all, where they lie there or are fewer."""
        return self.images

    def pieces(self) -> Iterator[torch.Tensor]:
        """Give all images in order, uint8 `[n, H, W, 3]` on the CPU, as many at a time as are to be in memory."""
        yield self.images.cpu()


def size_of(split: Split) -> str:
    """Return the number of images and their sides, in words."""
    return f"{len(split):,} images of {pixels_of(split)}"


def pixels_of(split: Split) -> str:
    """Return the height and width of the images, in words."""
    height, width, _ = split.image_shape
    return f"{height} x {width}"


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
