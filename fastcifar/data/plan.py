"""`EpochPlan`: every random choice of one epoch, drawn at once, as tensors; `Batch`: a batch made by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastcifar import kernels
from fastcifar.errors import UserError
from fastcifar.kernels.augment import rows_of_batch
from fastcifar.recipes.augmentation import Augment
from fastcifar.recipes.transforms import TransformConfig
from fastcifar.registry import resolve

_ORDER, _CROP, _FLIP, _CUTOUT, _JITTER, NOT_PLANNED, _TRANSFORM = range(7)
"""Of a seed's streams of random numbers those of each kind of choice, of what is drawn beside a plan, and of
transforms, each of which has one of its own by its kind."""

CROP_FLIP_CUTOUT = Augment(crop=4, flip="random", cutout=8)
"""Page's changes of the training images (How to train your ResNet, 2018)."""


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
    """float32 `[n, 2]`: what `kernels.augment` adds to normalized pixels and, before that, multiplies them by; None:
    nothing."""
    size: int
    """Side of the crops in pixels."""
    transforms: tuple[TransformConfig, ...] = ()
    """What changes each batch then, in this order."""
    numbers: torch.Tensor | None = None
    """float32 `[n, total]`: the numbers from 0 up to 1 that `transforms` draw for each image, as many columns each as
    its `draws`; None: no transforms."""

    @classmethod
    def draw(
        cls,
        count: int,
        augment: Augment,
        epoch: int,
        seed: int,
        *,
        image_size: int = 32,
        shuffle: bool = True,
        size: int | None = None,
        visited: torch.Tensor | None = None,
        transforms: Iterable[TransformConfig] = (),
        device: str | torch.device = "cpu",
    ) -> EpochPlan:
        """Draw the plan of `epoch` (from 0) for `count` square images of `image_size` pixels, on `device`.

        It is drawn on the host, whatever the device, and nothing waits for a GPU. `seed` is any integer from -2**63 to
        2**64 - 1; negative ones count from 2**64 down. `size`: side of the crops, the whole image's unless given.
        `visited`: places of the images that the epoch visits, int64 `[n]` on `device`, where what computes them may
        still be queued; all of them unless given. `transforms`: what changes each batch after `augment`; those that are
        not active are left out.

        A plan depends on `seed` and `epoch` alone, so epochs may be drawn in any order; and each kind of choice has a
        stream of its own, so that switching one off leaves the others as they are. A crop is uniform over its (image
        size - size + 2 crop + 1)^2 places. A cutout lies wholly inside the crop (as Page's; DeVries and Taylor's may
        overlap the edge). Alternating flips mirror a random half of the images in epoch 0 and the other half in epoch
        1, in turn (Jordan, airbench, 2024). Brightness b and contrast c make a normalized value x into (x + b) * c
        (hiverge, 2025).
        Raises UserError for a crop or cutout that `image_size` or `size` does not hold, for an epoch or a seed outside
        its range, and for no or more visited images than `count`.
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
        if not -(2**63) <= seed < 2**64:
            raise UserError(f"seed is {seed}; allowed: -2**63 to 2**64 - 1")
        visits = count if visited is None else len(visited)
        if not 1 <= visits <= count:
            raise UserError(f"the places of {visits} images are given to visit; allowed: 1 to the {count} images")

        order = torch.randperm(visits, generator=_stream(seed, _ORDER, epoch)) if shuffle else torch.arange(visits)
        shape = (visits, 2)
        first, last, source = -augment.crop, image_size - size + augment.crop, _stream(seed, _CROP, epoch)
        offsets = torch.randint(first, last + 1, shape, generator=source, dtype=torch.int32)
        if augment.flip == "random":
            flips = torch.randint(2, shape[:1], generator=_stream(seed, _FLIP, epoch)).bool()
        elif augment.flip == "alternating":  # of every image, whichever are visited
            flips = torch.randint(2, (count,), generator=_stream(seed, _FLIP, 0)).bool() ^ bool(epoch % 2)
        else:
            flips = torch.zeros(visits, dtype=torch.bool)
        cutouts = jitter = None
        if augment.cutout:
            side, source = augment.cutout, _stream(seed, _CUTOUT, epoch)
            corners = torch.randint(size - side + 1, shape, generator=source, dtype=torch.int32)
            cutouts = torch.cat([corners, torch.full_like(corners, side)], dim=1)
        if augment.brightness or augment.contrast:
            brightness, contrast = torch.rand(shape, generator=_stream(seed, _JITTER, epoch)).mul_(2).sub_(1).unbind(1)
            factor = 1 + augment.contrast * contrast
            jitter = torch.stack([augment.brightness * brightness * factor, factor], dim=1)
        transforms, numbers = _active(transforms), None
        if transforms:
            sources = [_stream(seed, _TRANSFORM, epoch, *each.kind.encode()) for each in transforms]
            drawn = [
                torch.rand(visits, each.draws, generator=source)
                for each, source in zip(transforms, sources, strict=True)
            ]
            numbers = torch.cat(drawn, dim=1)

        plan = cls(order, offsets, flips, cutouts, jitter, size, transforms, numbers)
        plan = plan._each(lambda tensor: _send(tensor, device))
        indices = plan.indices if visited is None else visited[plan.indices]
        flips = plan.flips[indices] if augment.flip == "alternating" else plan.flips
        return dataclasses.replace(plan, indices=indices, flips=flips)

    @classmethod
    def empty(
        cls,
        count: int,
        augment: Augment,
        image_size: int,
        device: str | torch.device,
        transforms: Iterable[TransformConfig] = (),
    ) -> EpochPlan:
        """Return a plan of zeros for `count` images, on `device`: buffers for `copy_` to fill with each epoch's."""
        transforms = _active(transforms)

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(count, *shape, dtype=dtype, device=device)

        return cls(
            zeros(dtype=torch.int64),
            zeros(2, dtype=torch.int32),
            zeros(dtype=torch.bool),
            zeros(4, dtype=torch.int32) if augment.cutout else None,
            zeros(2, dtype=torch.float32) if augment.brightness or augment.contrast else None,
            image_size,
            transforms,
            zeros(sum(each.draws for each in transforms), dtype=torch.float32) if transforms else None,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: str | torch.device) -> EpochPlan:
        """The same plan with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, start: int, stop: int) -> EpochPlan:
        """Return the choices for images `start` to `stop` of the epoch, as views."""
        return self._each(lambda tensor: tensor[start:stop])

    def batch(self, position: int | torch.Tensor, images: int) -> Batch:
        """Return batch number `position` (from 0) of `images` images.

        By an int the last batch may be smaller; IndexError for one beyond it. A tensor, int64 `[1]` on the plan's
        device, is read there at every use, as a captured step needs it; then a batch must be whole.
        """
        if isinstance(position, torch.Tensor):
            return Batch(self, images, position)
        part = self.rows(position * images, (position + 1) * images)
        if position < 0 or not len(part):
            raise IndexError(f"batch {position} of {images} images each; the plan has {len(self)} images")
        return Batch(part, len(part))

    def clone(self) -> EpochPlan:
        """The same plan in tensors of its own."""
        return self._each(torch.clone)

    def copy_(self, other: EpochPlan) -> None:
        """Overwrite the first rows of this plan's tensors with those of another epoch, from any device, which may visit
        fewer images; `size` stays as it is."""
        for mine, theirs in zip(self._tensors().values(), other._tensors().values(), strict=True):
            mine[: len(other)].copy_(theirs)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in vars(self).items() if isinstance(tensor, torch.Tensor)}

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> EpochPlan:
        return dataclasses.replace(self, **{name: change(tensor) for name, tensor in self._tensors().items()})


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of an epoch; made by `EpochPlan.batch`."""

    plan: EpochPlan
    """Choices for the batch's images alone or, with a `position`, for those of several batches."""
    images: int
    """How many images it has."""
    position: torch.Tensor | None = None
    """int64 `[1]` on the plan's device: which batch of `plan` it is, from 0; None: all of `plan`."""

    def augment(
        self,
        images: torch.Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        size: int | None = None,
    ) -> torch.Tensor:
        """Return the batch out of `images`, uint8 `[N, H, W, 3]`, as the plan says: `[B, 3, size, size]` of `dtype`,
        channels-last, normalized by `mean` and `std` (0 to 255 units). `size` is the plan's unless given.

        Raises UserError for a transform that makes anything else of a batch than as many images of the same sides."""
        plan = self.plan
        made = kernels.augment(
            images,
            plan.indices,
            plan.offsets,
            flips=plan.flips,
            cutouts=plan.cutouts,
            jitter=plan.jitter,
            mean=mean,
            std=std,
            out_dtype=dtype,
            size=plan.size if size is None else size,
            position=self.position,
            batch=None if self.position is None else self.images,
        )
        if plan.numbers is None:
            return made
        parts = self._own(plan.numbers).split([each.draws for each in plan.transforms], dim=1)
        for config, numbers in zip(plan.transforms, parts, strict=True):
            changed = resolve(type(config).function)(made, numbers, config)
            made = checked_batch(changed, made, f"transforms.{config.kind}")
        return made

    @property
    def indices(self) -> torch.Tensor:
        """The places of the batch's images in the split, int64 `[B]`."""
        return self._own(self.plan.indices)

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the batch's labels, int64 `[B]`, out of those of the split."""
        return labels[self.indices]

    def _own(self, choices: torch.Tensor) -> torch.Tensor:
        """Those of the plan's `choices` that are the batch's."""
        return choices if self.position is None else choices[rows_of_batch(self.position, self.images)]


def checked_batch(made: object, images: torch.Tensor, what: str, *, sides: bool = True) -> torch.Tensor:
    """Return `made`, which `what` made of `images` `[B, 3, H, W]`, in the type of those. Raises UserError for what is
    not as many images, of the same sides unless `sides` is false."""
    kept = 4 if sides else 2
    if isinstance(made, torch.Tensor) and made.dim() == 4 and made.shape[:kept] == images.shape[:kept]:
        return made.to(images.dtype)
    found = list(made.shape) if isinstance(made, torch.Tensor) else f"a {type(made).__name__}"
    height, width = images.shape[2:] if sides else ("H", "W")
    allowed = f"as many images, [{len(images)}, 3, {height}, {width}]"
    raise UserError(f"{what} makes {found} of {list(images.shape)}; allowed: {allowed}")


def _active(transforms: Iterable[TransformConfig]) -> tuple[TransformConfig, ...]:
    return tuple(each for each in transforms if each.active)


def _send(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """`tensor`, from the CPU, on `device`. To a GPU it goes from pinned memory, since a copy from any other waits for
    all that is queued. Each is pinned in memory of its own, and that may be let go while its copy is still to come:
    torch's allocator of pinned memory lends it to nobody else before the stream of the copy has passed it."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _stream(seed: int, purpose: int, epoch: int, *kind: int) -> torch.Generator:
    """A generator for one kind of choice in one epoch."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, epoch, *kind))


def derived_seed(seed: int, *stream: int) -> int:
    """Return the seed of one of the streams of `seed`. It is hashed: neighbors must not make like streams, and a
    generator seeded with `seed` itself, as a model's may be, must not make this one."""
    return int(np.random.SeedSequence([seed % 2**64, *stream]).generate_state(1, np.uint64)[0])
