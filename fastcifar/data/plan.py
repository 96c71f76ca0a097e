"""`EpochPlan`: all random choices of one epoch, drawn at once, as tensors; `Batch`: a batch made by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from fastcifar import kernels
from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.kernels.augment import change_pixels, rows_of_batch
from fastcifar.kernels.mix import cutmix_choices, mix, mixup_choices
from fastcifar.recipes.augmentation import Augment, MixConfig
from fastcifar.recipes.declare import Declaration, checked
from fastcifar.recipes.transforms import TransformConfig
from fastcifar.registry import resolve

_ORDER, _CROP, _FLIP, _CUTOUT, _JITTER, NOT_PLANNED, _TRANSFORM, _MIXUP, _CUTMIX, _CUT, BY_IMAGE, REPLACED = range(12)
"""The streams of a seed's random numbers, one for each kind of choice. NOT_PLANNED is for choices outside of plans,
BY_IMAGE for those that a `HostLoader` draws image by image, REPLACED for the fresh values of hidden units; each
transform has a stream of its own, by its kind."""

CROP_FLIP_CUTOUT = Augment(crop=4, flip="random", cutout=8)
"""Page's augmentation (How to train your ResNet, 2018)."""

_NOT_MIXED = MixConfig()
_SEED = Declaration(at_least=-(2**63), below=2**64)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The images that an epoch (or a part of it) takes, in order, and the changes of each."""

    indices: torch.Tensor
    """int64 `[n]`: places in the split."""
    offsets: torch.Tensor
    """int32 `[n, 2]`: top and left of the crop in the image without its border, -crop to image size - size + crop; of a
    crop of the image's own size, -crop to crop, where that is rescaled."""
    flips: torch.Tensor
    """bool `[n]`: mirrored left to right."""
    cutouts: torch.Tensor | None
    """int32 `[n, 4]`: top, left, height, width of the square cut out of the cropped, flipped and rescaled image; None:
    none."""
    jitter: torch.Tensor | None
    """float32 `[n, 2]`: summand and factor of normalized pixels, for `kernels.augment`, which multiplies first; None:
    no jitter."""
    size: int
    """Side of the batches' images in pixels."""
    transforms: tuple[TransformConfig, ...] = ()
    """The transforms of each batch, applied last, in this order."""
    numbers: torch.Tensor | None = None
    """float32 `[n, total]`: numbers from 0 up to 1 for `transforms`, `draws` columns for each; None: no transforms."""
    resized: bool = False
    """Crops have the image's own size and are rescaled to `size`; else that is their side."""
    mixing: torch.Tensor | None = None
    """float32 `[n, 4]`: choices of `kernels.mix`, of which a batch takes its first image's; None: images are not
    mixed."""

    def __repr__(self) -> str:
        return f"EpochPlan({len(self.indices):,} images of side {self.size}, on {self.indices.device})"

    @classmethod
    @TORCH.applied()
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
        visit_counts: torch.Tensor | None = None,
        transforms: Iterable[TransformConfig] = (),
        mixing: MixConfig = _NOT_MIXED,
        device: str | torch.device = "cpu",
    ) -> EpochPlan:
        """Draw the plan of an epoch, on the host, without waiting for a GPU.

        count: number of images in the split.
        augment: the changes to draw.
        epoch: number of the epoch, from 0.
        seed: an integer from -2**63 to 2**64 - 1; negative ones count from 2**64 down.
        image_size: side of the images, which are square, in pixels.
        shuffle: visit the images in random order.
        size: side of the crops or, where `augment.early` is "resize", what whole images are rescaled to; the image's
            unless given.
        visited: places of the images to visit, int64 `[n]` on `device`, perhaps still to be computed there; all unless
            given.
        visit_counts: how often each image of the split was visited before, int `[count]` on `device`, for flips by
            visit; once an epoch unless given.
        transforms: changes of each batch after `augment`; those that are not active are left out.
        mixing: how the images of a batch are mixed at last.
        device: the device of the plan's tensors.

        A plan depends on `seed` and `epoch` alone, and on which images were visited where that is given, so epochs may
        be drawn in any order. Each kind of choice has a stream of its own, so that switching one off leaves the others
        as they are. A crop is uniform over its (image size - size + 2 crop + 1)^2 places; where whole images are
        rescaled, over those of the image's own size. A cutout lies inside the crop (as in Page's; DeVries and Taylor's
        may overlap the edge), and is rescaled with it. Alternating flips mirror a random half of the images in epoch 0,
        the other half in epoch 1, and so on (Jordan, airbench, 2024); by visit, that half at its first visit, the other
        at its second. Brightness b and contrast c turn a normalized value x into (x + b) * c (hiverge, 2025).
        Raises UserError if a crop or cutout does not fit into `image_size` or `size`, if epoch or seed is out of range,
        and if no or more than `count` images are visited.
        """
        epoch, seed = checked("epoch", epoch, int), checked("seed", seed, int, _SEED)
        size = image_size if size is None else int(checked("the crops' size", size, int))
        if not 0 < size <= image_size:
            raise UserError(f"the crops' size is {size}; allowed: 1 to {image_size}, the image's side")
        if augment.crop >= image_size:
            raise UserError(f"augment.crop is {augment.crop}; allowed: 0 to {image_size - 1}, inside the image")
        resized = augment.early == "resize"
        side = image_size if resized else size
        if augment.cutout > side:
            raise UserError(f"augment.cutout is {augment.cutout}; allowed: 0 to {side}, the crop's side")
        if epoch < 0:
            raise UserError(f"epoch is {epoch}; allowed: 0 or more")
        visits = count if visited is None else len(visited)
        if not 1 <= visits <= count:
            raise UserError(f"the places of {visits} images are given to visit; allowed: 1 to the {count} images")

        order = torch.randperm(visits, generator=_stream(seed, _ORDER, epoch)) if shuffle else torch.arange(visits)
        shape = (visits, 2)
        first, last, generator = -augment.crop, image_size - side + augment.crop, _stream(seed, _CROP, epoch)
        offsets = torch.randint(first, last + 1, shape, generator=generator, dtype=torch.int32)
        if augment.flip == "random":
            flips = torch.randint(2, shape[:1], generator=_stream(seed, _FLIP, epoch)).bool()
        elif augment.flip == "none":
            flips = torch.zeros(visits, dtype=torch.bool)
        else:  # at the first visit, for every image, visited or not
            flips = torch.randint(2, (count,), generator=_stream(seed, _FLIP, 0)).bool()
        cutouts = jitter = None
        if augment.cutout:
            cut, generator = max(1, round(augment.cutout * size / side)), _stream(seed, _CUTOUT, epoch)
            corners = torch.randint(size - cut + 1, shape, generator=generator, dtype=torch.int32)
            cutouts = torch.cat([corners, torch.full_like(corners, cut)], dim=1)
        if augment.brightness or augment.contrast:
            uniform = torch.rand(shape, generator=_stream(seed, _JITTER, epoch), dtype=torch.float32)
            brightness, contrast = uniform.mul_(2).sub_(1).unbind(1)
            factor = 1 + augment.contrast * contrast
            jitter = torch.stack([augment.brightness * brightness * factor, factor], dim=1)
        transforms, numbers = _active(transforms), None
        if transforms:
            generators = ((each, _stream(seed, _TRANSFORM, epoch, *each.kind.encode())) for each in transforms)
            drawn = [torch.rand(visits, each.draws, generator=own, dtype=torch.float32) for each, own in generators]
            numbers = torch.cat(drawn, dim=1)

        mixed = _draw_mixing(visits, mixing, seed, epoch) if mixing.active else None

        plan = cls(order, offsets, flips, cutouts, jitter, size, transforms, numbers, resized, mixed)
        plan = plan._each(lambda tensor: send(tensor, device))
        indices = plan.indices if visited is None else visited[plan.indices]
        flips = plan.flips
        if augment.flip in ("alternating", "by-visit"):
            counts = visit_counts if augment.flip == "by-visit" else None
            flips = flips[indices] ^ (bool(epoch % 2) if counts is None else counts[indices] % 2 == 1)
        return dataclasses.replace(plan, indices=indices, flips=flips)

    @classmethod
    def empty(
        cls,
        count: int,
        augment: Augment,
        image_size: int,
        device: str | torch.device,
        transforms: Iterable[TransformConfig] = (),
        mixing: MixConfig = _NOT_MIXED,
    ) -> EpochPlan:
        """Return a plan of zeros with the tensors that `draw` makes with the same arguments, for `copy_` to fill."""
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
            augment.early == "resize",
            zeros(4, dtype=torch.float32) if mixing.active else None,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: str | torch.device) -> EpochPlan:
        """Return the same plan with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, start: int, stop: int) -> EpochPlan:
        """Return the plan of images `start` to `stop` of the epoch, as views."""
        return self._each(lambda tensor: tensor[start:stop])

    def batch(self, position: int | torch.Tensor, images: int) -> Batch:
        """Return batch number `position` (from 0) of `images` images.

        With an int the last batch may be smaller; raises IndexError beyond it. A tensor, int64 `[1]` on the plan's
        device, is read there at every use, as a captured step needs it; then the batch must be full.
        """
        if isinstance(position, torch.Tensor):
            return Batch(self, images, position)
        part = self.rows(position * images, (position + 1) * images)
        if position < 0 or not len(part):
            raise IndexError(f"batch {position} of {images} images each; the plan has {len(self)} images")
        return Batch(part, len(part))

    def clone(self) -> EpochPlan:
        """Return a copy of the plan."""
        return self._each(torch.clone)

    def copy_(self, other: EpochPlan) -> None:
        """Overwrite the first rows of this plan's tensors with those of another, on any device, which may visit fewer
        images; `size` stays as it is."""
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
    """The plan of the batch's images or, with a `position`, of several batches."""
    images: int
    """Number of images in the batch."""
    position: torch.Tensor | None = None
    """int64 `[1]` on the plan's device: the number of the batch in `plan`, from 0; None: all of `plan`."""

    def augment(
        self,
        images: torch.Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        size: int | None = None,
    ) -> torch.Tensor:
        """Return the batch, `[B, 3, size, size]`, channels-last and normalized.

        images: the split's, uint8 `[N, H, W, 3]`.
        mean, std: of red, green and blue, in 0..255 units.
        dtype: of the batch.
        size: side of the batch's images; the plan's unless given.

        Raises UserError if a transform returns anything but as many images of the same sides.
        """
        plan = self.plan
        batch = kernels.augment(
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
            crop=images.shape[1] if plan.resized else None,
        )
        return self.transform(batch, mean=mean, std=std)

    def transform(self, batch: torch.Tensor, *, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        """Return the images of the batch, `[B, 3, H, W]` as `augment` makes them, after the plan's transforms."""
        plan = self.plan
        if plan.numbers is None:
            return batch
        parts = self._own(plan.numbers).split([each.draws for each in plan.transforms], dim=1)
        for config, numbers in zip(plan.transforms, parts, strict=True):
            change = partial(_changed, config, numbers)
            batch = change_pixels(change, batch, mean, std) if config.of_pixels else change(batch)
        return batch

    def alone(self) -> Batch:
        """Return the batch with a plan of its own, whose indices count from 0: for images read for it alone."""
        plan = self.plan if self.position is None else self.plan._each(self._own)
        own = dataclasses.replace(plan, indices=torch.arange(self.images, device=plan.indices.device))
        return Batch(own, self.images)

    def mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Mixed | None]:
        """Return the batch's `images` `[B, 3, H, W]`, each mixed with the one before it, which is a random one as the
        order is, and with what; as they are, and None, where the plan mixes nothing. `labels`: the split's."""
        if self.plan.mixing is None:
            return images, None
        first = 0 if self.position is None else self.position * self.images
        choice = self.plan.mixing[first].view(4)
        mixed, share = mix(images, images.roll(1, 0), choice)
        return mixed, Mixed(self.labels(labels).roll(1), share)

    @property
    def indices(self) -> torch.Tensor:
        """Places of the batch's images in the split, int64 `[B]`."""
        return self._own(self.plan.indices)

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the batch's labels, int64 `[B]`, out of the split's `labels`."""
        return labels[self.indices]

    def _own(self, choices: torch.Tensor) -> torch.Tensor:
        """Return the batch's rows of a tensor of the plan."""
        return choices if self.position is None else choices[rows_of_batch(self.position, self.images)]


class Mixed(NamedTuple):
    """What the images of a batch are mixed with."""

    labels: torch.Tensor
    """int64 `[B]`, of the other images."""
    share: torch.Tensor
    """float32 `[]`: the part of their labels in the targets, at most 1/2."""


def checked_batch(made: object, images: torch.Tensor, name: str, *, sides: bool = True) -> torch.Tensor:
    """Return `made` in the type of `images`.

    made: the images that a transform made of `images`.
    images: `[B, 3, H, W]`.
    name: the transform's name in errors.
    sides: `made` must have the same sides.

    Raises UserError unless `made` are as many images.
    """
    kept = 4 if sides else 2
    if isinstance(made, torch.Tensor) and made.dim() == 4 and made.shape[:kept] == images.shape[:kept]:
        return made.to(images.dtype)
    found = list(made.shape) if isinstance(made, torch.Tensor) else f"a {type(made).__name__}"
    height, width = images.shape[2:] if sides else ("H", "W")
    allowed = f"as many images, [{len(images)}, 3, {height}, {width}]"
    raise UserError(f"{name} makes {found} of {list(images.shape)}; allowed: {allowed}")


def _changed(config: TransformConfig, numbers: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return checked_batch(resolve(type(config).function)(images, numbers, config), images, f"transforms.{config.kind}")


def _draw_mixing(count: int, mixing: MixConfig, seed: int, epoch: int) -> torch.Tensor:
    """Draw the choices of `kernels.mix` for each of `count` images."""
    choices = []
    if mixing.mixup:
        choices.append(mixup_choices(mixing.mixup, count, _stream(seed, _MIXUP, epoch)))
    if mixing.cutmix:
        choices.append(cutmix_choices(mixing.cutmix, count, _stream(seed, _CUTMIX, epoch)))
        others = choices[0] if mixing.mixup else torch.zeros_like(choices[0])
        cut = torch.rand(count, 1, generator=_stream(seed, _CUT, epoch), dtype=torch.float32) < mixing.cutmix_share
        return torch.where(cut, choices[-1], others)
    return choices[0]


def _active(transforms: Iterable[TransformConfig]) -> tuple[TransformConfig, ...]:
    return tuple(each for each in transforms if each.active)


def send(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """Copy a CPU tensor to `device`. To a GPU it goes from pinned memory, since a copy from any other waits for all
    queued work. The pinned memory may be freed before the copy is done: torch's allocator does not reuse it until the
    copy's stream has passed it."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _stream(seed: int, purpose: int, epoch: int, *kind: int) -> torch.Generator:
    """Return a generator for one kind of choice in one epoch."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, epoch, *kind))


def derived_seed(seed: int, *stream: int) -> int:
    """Return the seed of one of the streams of `seed`. It is a hash, so that similar seeds make unrelated streams, and
    none is that of a generator seeded with `seed` itself, as a model's may be."""
    return int(np.random.SeedSequence([seed % 2**64, *stream]).generate_state(1, np.uint64)[0])
