"""`EpochPlan`: every random choice of one epoch, drawn at once, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastcifar.errors import UserError
from fastcifar.recipes.recipe import Augment

_ORDER, _CROP, _FLIP, _CUTOUT = range(4)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """Which images an epoch (or a part of it) takes, in their order, and how each is changed."""

    indices: torch.Tensor
    """int64 `[n]`: places in the split."""
    offsets: torch.Tensor
    """int32 `[n, 2]`: top and left of the crop relative to the image without its border, -crop to crop."""
    flips: torch.Tensor
    """bool `[n]`: mirrored left to right."""
    cutouts: torch.Tensor | None
    """int32 `[n, 4]`: top, left, height, width of the square cut out of the cropped and flipped image; None: none."""

    @classmethod
    def draw(
        cls,
        count: int,
        augment: Augment,
        epoch: int,
        generator: torch.Generator,
        image_size: int = 32,
        shuffle: bool = True,
    ) -> EpochPlan:
        """The plan of `epoch` (from 0) for `count` square images of `image_size` pixels, on the CPU.

        `generator` lends its initial seed alone and is not advanced: a plan depends on that seed and `epoch`, so epochs
        may be drawn in any order; and each kind of choice has a stream of its own, so that switching one off leaves the
        others as they are. A crop is uniform over its (2 crop + 1)^2 places. A cutout lies wholly inside the image (as
        Page's; DeVries and Taylor's may overlap the edge). Alternating flips mirror a random half of the images in
        epoch 0 and the other half in epoch 1, in turn (Jordan, airbench, 2024).
        Raises UserError for a crop or cutout that `image_size` does not hold, and for a negative epoch.
        """
        if augment.crop >= image_size:
            raise UserError(f"augment.crop is {augment.crop}; allowed: 0 to {image_size - 1}, inside the image")
        if augment.cutout > image_size:
            raise UserError(f"augment.cutout is {augment.cutout}; allowed: 0 to {image_size}, the image's side")
        if epoch < 0:
            raise UserError(f"epoch is {epoch}; allowed: 0 or more")
        seed = generator.initial_seed()

        indices = torch.randperm(count, generator=_stream(seed, _ORDER, epoch)) if shuffle else torch.arange(count)
        reach, source = augment.crop, _stream(seed, _CROP, epoch)
        offsets = torch.randint(-reach, reach + 1, (count, 2), generator=source, dtype=torch.int32)
        if augment.flip == "random":
            flips = torch.randint(2, (count,), generator=_stream(seed, _FLIP, epoch)).bool()
        elif augment.flip == "alternating":
            first = torch.randint(2, (count,), generator=_stream(seed, _FLIP, 0)).bool()
            flips = first[indices] ^ bool(epoch % 2)
        else:
            flips = torch.zeros(count, dtype=torch.bool)
        cutouts = None
        if augment.cutout:
            side, source = augment.cutout, _stream(seed, _CUTOUT, epoch)
            corners = torch.randint(image_size - side + 1, (count, 2), generator=source, dtype=torch.int32)
            cutouts = torch.cat([corners, torch.full_like(corners, side)], dim=1)
        return cls(indices, offsets, flips, cutouts)

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: str | torch.device) -> EpochPlan:
        """The same plan with its tensors on `device`."""
        cutouts = None if self.cutouts is None else self.cutouts.to(device)
        return EpochPlan(self.indices.to(device), self.offsets.to(device), self.flips.to(device), cutouts)

    def batch(self, start: int, stop: int) -> EpochPlan:
        """The choices for images `start` to `stop` of the epoch, as views."""
        part = slice(start, stop)
        cutouts = None if self.cutouts is None else self.cutouts[part]
        return EpochPlan(self.indices[part], self.offsets[part], self.flips[part], cutouts)

    def take(self, rows: torch.Tensor) -> EpochPlan:
        """The choices in the places `rows`, int64 `[b]` on the plan's device, as copies."""
        cutouts = None if self.cutouts is None else self.cutouts[rows]
        return EpochPlan(self.indices[rows], self.offsets[rows], self.flips[rows], cutouts)

    def copy_(self, other: EpochPlan) -> None:
        """Overwrite this plan's tensors with those of another epoch of the same split, from any device."""
        self.indices.copy_(other.indices)
        self.offsets.copy_(other.offsets)
        self.flips.copy_(other.flips)
        if self.cutouts is not None:
            self.cutouts.copy_(other.cutouts)


def _stream(seed: int, purpose: int, epoch: int) -> torch.Generator:
    """A generator for one kind of choice in one epoch. Seeds are hashed: neighbours must not make like streams, and a
    generator seeded with `seed` itself, as a model's may be, must not make this one."""
    mixed = np.random.SeedSequence([seed, purpose, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))
