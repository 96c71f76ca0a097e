"""`EpochPlan`: every random choice of one epoch, drawn at once, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fastcifar.errors import UserError
from fastcifar.recipes.recipe import Augment

_ORDER, _CROP, _FLIP, _CUTOUT, _JITTER = range(5)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """Which images an epoch (or a part of it) takes, in their order, and how each is changed."""

    indices: torch.Tensor
    """int64 `[n]`: places in the split."""
    offsets: torch.Tensor
    """int32 `[n, 2]`: top and left of the crop in the image without its border, -crop to image size - size + crop."""
    flips: torch.Tensor
    """bool `[n]`: mirrored left to right."""
    cutouts: torch.Tensor | None
    """int32 `[n, 4]`: top, left, height, width of the square cut out of the cropped and flipped image; None: none."""
    jitter: torch.Tensor | None
    """float32 `[n, 2]`: what `kernels.augment` adds to normalised pixels and, before that, multiplies them by; None:
    nothing."""
    size: int
    """Side of the crops in pixels."""

    @classmethod
    def prepare(
        cls,
        count: int,
        augment: Augment,
        epoch: int,
        generator: torch.Generator,
        image_size: int = 32,
        shuffle: bool = True,
        size: int | None = None,
        visits: int | None = None,
        device: str | torch.device = "cpu",
    ) -> Callable[[torch.Tensor | None], EpochPlan]:
        """The plan of `epoch` (from 0) for `count` square images of `image_size` pixels, on `device`, but for which
        images it visits: call the result with their places, int64 `[visits]` on `device`, or, where it visits all,
        with None. Which they are may be known late, and then little is left to do. It is drawn on the host, whatever
        the device, and nothing waits for a GPU.

        `size`: side of the crops, the whole image's unless given. `visits`: how many images the epoch visits, all of
        them unless given.

        `generator` lends its initial seed alone and is not advanced: a plan depends on that seed and `epoch`, so epochs
        may be drawn in any order; and each kind of choice has a stream of its own, so that switching one off leaves the
        others as they are. A crop is uniform over its (image size - size + 2 crop + 1)^2 places. A cutout lies wholly
        inside the crop (as Page's; DeVries and Taylor's may overlap the edge). Alternating flips mirror a random half
        of the images in epoch 0 and the other half in epoch 1, in turn (Jordan, airbench, 2024). Brightness b and
        contrast c make a normalised value x into (x + b) * c (hiverge, cifar10-speedrun, 2025).
        Raises UserError for a crop or cutout that `image_size` or `size` does not hold, for a negative epoch and,
        in the second call too, for another number of images than `count` holds or `visits` says.
        """
        size = image_size if size is None else size
        if not 0 < size <= image_size:
            raise UserError(f"the crops' size is {size}; allowed: 1 to {image_size}, the image's side")
        if augment.crop >= image_size:
            raise UserError(f"augment.crop is {augment.crop}; allowed: 0 to {image_size - 1}, inside the image")
        if augment.cutout > size:
            raise UserError(f"augment.cutout is {augment.cutout}; allowed: 0 to {size}, the crop's side")
        if epoch < 0:
            raise UserError(f"epoch is {epoch}; allowed: 0 or more")
        if visits is not None and not 1 <= visits <= count:
            raise UserError(f"visits is {visits}; allowed: 1 to the {count} images")
        seed = generator.initial_seed()
        visits = count if visits is None else visits

        order = torch.randperm(visits, generator=_stream(seed, _ORDER, epoch)) if shuffle else torch.arange(visits)
        shape = (visits, 2)
        first, last, source = -augment.crop, image_size - size + augment.crop, _stream(seed, _CROP, epoch)
        offsets = torch.randint(first, last + 1, shape, generator=source, dtype=torch.int32)
        if augment.flip == "random":
            mirrored = torch.randint(2, shape[:1], generator=_stream(seed, _FLIP, epoch)).bool()
        elif augment.flip == "alternating":
            mirrored = torch.randint(2, (count,), generator=_stream(seed, _FLIP, 0)).bool() ^ bool(epoch % 2)
        else:
            mirrored = torch.zeros(visits, dtype=torch.bool)
        cutouts = jitter = None
        if augment.cutout:
            side, source = augment.cutout, _stream(seed, _CUTOUT, epoch)
            corners = torch.randint(size - side + 1, shape, generator=source, dtype=torch.int32)
            cutouts = torch.cat([corners, torch.full_like(corners, side)], dim=1)
        if augment.brightness or augment.contrast:
            brightness, contrast = torch.rand(shape, generator=_stream(seed, _JITTER, epoch)).mul_(2).sub_(1).unbind(1)
            factor = 1 + augment.contrast * contrast
            jitter = torch.stack([augment.brightness * brightness * factor, factor], dim=1)

        order, offsets, mirrored = (_send(tensor, device) for tensor in (order, offsets, mirrored))
        cutouts, jitter = (None if tensor is None else _send(tensor, device) for tensor in (cutouts, jitter))

        def finish(visited: torch.Tensor | None) -> EpochPlan:
            given = count if visited is None else len(visited)
            if given != visits:
                raise UserError(f"the places of {given} images are given to visit; allowed: {visits}, as prepared for")
            indices = order if visited is None else visited[order]
            flips = mirrored[indices] if augment.flip == "alternating" else mirrored  # which goes by the image
            return cls(indices, offsets, flips, cutouts, jitter, size)

        return finish

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: str | torch.device) -> EpochPlan:
        """The same plan with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def batch(self, start: int, stop: int) -> EpochPlan:
        """The choices for images `start` to `stop` of the epoch, as views."""
        return self._each(lambda tensor: tensor[start:stop])

    def clone(self) -> EpochPlan:
        """The same plan in tensors of its own."""
        return self._each(torch.clone)

    def copy_(self, other: EpochPlan) -> None:
        """Overwrite the first rows of this plan's tensors with those of another epoch, from any device, which may visit
        fewer images; `size` stays as it is."""
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            if mine is not None:
                mine[: len(other)].copy_(theirs)

    def _tensors(self) -> tuple[torch.Tensor | None, ...]:
        return self.indices, self.offsets, self.flips, self.cutouts, self.jitter

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> EpochPlan:
        return EpochPlan(*(None if tensor is None else change(tensor) for tensor in self._tensors()), self.size)


def _send(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """`tensor`, from the CPU, on `device`. To a GPU it goes from pinned memory, since a copy from any other waits for
    all that is queued. Each is pinned in memory of its own, and that may be let go while its copy is still to come:
    torch's allocator of pinned memory lends it to nobody else before the stream of the copy has passed it."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _stream(seed: int, purpose: int, epoch: int) -> torch.Generator:
    """A generator for one kind of choice in one epoch. Seeds are hashed: neighbours must not make like streams, and a
    generator seeded with `seed` itself, as a model's may be, must not make this one."""
    mixed = np.random.SeedSequence([seed, purpose, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))
