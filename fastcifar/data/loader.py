"""`Loader`: augmented batches of a split, for our training or a loop of your own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from fastcifar.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Split
from fastcifar.data.feed import Feed
from fastcifar.data.kept import KeptSplit
from fastcifar.data.plan import CROP_FLIP_CUTOUT, EpochPlan
from fastcifar.errors import UserError, brief
from fastcifar.host import TORCH
from fastcifar.recipes.augmentation import Augment, by_channel
from fastcifar.recipes.declare import checked
from fastcifar.recipes.transforms import TransformConfig


class Loader:
    """An iterable over one epoch's `(images, labels)`: images `[B, 3, H, W]`, channels-last and normalized, and labels
    int64 `[B]`, both on the split's device. Each new iteration is the next epoch.

        for images, labels in Loader(dataset.train, batch_size=512, mean=dataset.mean, std=dataset.std): ...

    augment: the changes of the images. For an evaluation: `Augment(crop=0, flip="none")`, no `shuffle`, no `drop_last`.
    seed: with the number of an epoch it determines the epoch's batches.
    drop_last: drop a last batch that is not full.
    mean, std: of red, green and blue, in 0..255 units.
    dtype: of the images.
    size: side of the crops, or of what whole images are rescaled to (see `augment.early`); None: the images' own. A
        loader ignores `augment.early_crops`: set `size` between epochs.
    transforms: changes of each batch after `augment`, such as `recipe.transforms`.

    The attribute `epoch` is the number of the next epoch, from 0; set it to resume a training.
    Raises UserError for images that are not square, and if no batch is full and `drop_last` would drop all.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int = 512,
        augment: Augment = CROP_FLIP_CUTOUT,
        seed: int = 0,
        drop_last: bool = True,
        shuffle: bool = True,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        dtype: torch.dtype = torch.float32,
        size: int | None = None,
        transforms: Iterable[TransformConfig] = (),
    ) -> None:
        if not isinstance(split, Split):
            raise UserError(f"the split is of type {type(split).__name__}; allowed: a Split, such as data.train")
        if not isinstance(augment, Augment):
            raise UserError(f"augment is of type {type(augment).__name__}; allowed: an Augment, such as recipe.augment")
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise UserError(f"dtype is {brief(dtype)}; allowed: torch.float32, or another floating one")
        self._side = split.side
        batch_size = checked("batch_size", batch_size, int)
        if batch_size < 1 or (drop_last and batch_size > len(split)):
            allowed = f"1 to the {len(split)} images" if drop_last else "1 or more"
            raise UserError(f"batch_size is {batch_size}; allowed: {allowed}")
        self.split = split
        self.batch_size = batch_size
        self.augment = augment
        self.seed = checked("seed", seed, int)
        self.drop_last = checked("drop_last", drop_last, bool)
        self.shuffle = checked("shuffle", shuffle, bool)
        self.mean, self.std = by_channel("mean", mean), by_channel("std", std, above=0)
        self.dtype = dtype
        self.size = checked("size", size, int | None)
        self.transforms = tuple(transforms) if isinstance(transforms, Iterable) else (transforms,)
        for each in self.transforms:
            if not isinstance(each, TransformConfig):
                said = f"transforms holds {type(each).__name__}"
                raise UserError(f"{said}; allowed: configurations, such as those of recipe.transforms")
        self.epoch = 0

    def __repr__(self) -> str:
        return f"Loader({len(self)} batches of {self.batch_size}, {self.split!r}, next epoch {self.epoch})"

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, over = divmod(len(self.split), self.batch_size)
        return whole if self.drop_last or not over else whole + 1

    def plan(
        self,
        epoch: int,
        size: int | None = None,
        visited: torch.Tensor | None = None,
        visit_counts: torch.Tensor | None = None,
    ) -> EpochPlan:
        """Draw the plan of `epoch`, on the split's device.

        epoch: number of the epoch, from 0.
        size: see `Loader`; its own unless given.
        visited, visit_counts: see `EpochPlan.draw`.
        """
        return EpochPlan.draw(
            len(self.split),
            self.augment,
            epoch,
            self.seed,
            image_size=self._side,
            shuffle=self.shuffle,
            size=self.size if size is None else size,
            visited=visited,
            visit_counts=visit_counts,
            transforms=self.transforms,
            device=self.split.device,
        )

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = checked("epoch", self.epoch, int)
        self.epoch = epoch + 1
        return self._batches(self.plan(epoch))

    def _batches(self, plan: EpochPlan) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        split, size, feed = self.split, self.batch_size, None
        if isinstance(split, KeptSplit):
            feed = Feed(split, size)
            feed.begin(plan.indices, ((start, min(start + size, len(plan))) for start in range(0, len(plan), size)))
        for position in range(len(self)):
            with TORCH.applied():  # not while the caller has the batch
                batch = plan.batch(position, size)
                labels = batch.labels(split.labels)
                if feed:
                    feed.next()
                    batch, images = batch.alone(), feed.images
                else:
                    images = split.images
                made = batch.augment(images, mean=self.mean, std=self.std, dtype=self.dtype), labels
            yield made
