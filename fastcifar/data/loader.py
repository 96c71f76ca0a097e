"""`Loader`: augmented batches of a split, for our training and for anybody's own loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from fastcifar.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Split
from fastcifar.data.plan import CROP_FLIP_CUTOUT, EpochPlan
from fastcifar.errors import UserError
from fastcifar.recipes.augmentation import Augment
from fastcifar.recipes.transforms import TransformConfig


class Loader:
    """Iterates over one epoch's `(images, labels)`: images `[B, 3, H, W]` of `dtype`, channels-last and normalized, and
    labels int64 `[B]`, both on the split's device. Each new iteration is the next epoch.

        for images, labels in Loader(dataset.train, batch_size=512, mean=dataset.mean, std=dataset.std): ...

    `epoch` is the number of the epoch that the next iteration gives, from 0; set it to resume a training. The batches
    of an epoch depend on `seed` and its number alone. `size` is the side of the crops, the images' own if None; set it
    between epochs to train on smaller ones early, since a loader does not know which epochs are early by
    `augment.early_crops`. Without `drop_last` an epoch ends with the images left over. Mean and std are in 0..255
    units, CIFAR-10's unless given. `transforms` change each batch after `augment`, such as `recipe.transforms`. For an
    evaluation: `augment=Augment(crop=0, flip="none"), shuffle=False, drop_last=False`.
    Raises UserError for images that are not square, and for a batch larger than the split where `drop_last` would leave
    nothing.
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
        self._side = split.side
        if batch_size < 1 or (drop_last and batch_size > len(split)):
            allowed = f"1 to the {len(split)} images" if drop_last else "1 or more"
            raise UserError(f"batch_size is {batch_size}; allowed: {allowed}")
        self.split = split
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.mean, self.std = tuple(mean), tuple(std)
        self.dtype = dtype
        self.size = size
        self.transforms = tuple(transforms)
        self.epoch = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, over = divmod(len(self.split), self.batch_size)
        return whole if self.drop_last or not over else whole + 1

    def plan(self, epoch: int, size: int | None = None, visited: torch.Tensor | None = None) -> EpochPlan:
        """Draw the random choices of `epoch`, on the split's device: crops of `size` (the loader's unless given) of the
        images at the places `visited`, int64 `[n]` on that device (all unless given). See `EpochPlan.draw`."""
        return EpochPlan.draw(
            len(self.split),
            self.augment,
            epoch,
            self.seed,
            image_size=self._side,
            shuffle=self.shuffle,
            size=self.size if size is None else size,
            visited=visited,
            transforms=self.transforms,
            device=self.split.device,
        )

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = self.epoch
        self.epoch += 1
        return self._batches(self.plan(epoch))

    def _batches(self, plan: EpochPlan) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images, labels = self.split.images, self.split.labels
        for position in range(len(self)):
            batch = plan.batch(position, self.batch_size)
            yield batch.augment(images, mean=self.mean, std=self.std, dtype=self.dtype), batch.labels(labels)
