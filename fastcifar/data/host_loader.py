"""`HostLoader`: batches made image by image by a plain DataLoader on the host, for `loading.loader = "host"`."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from fastcifar.data.feed import Waits
from fastcifar.data.plan import BY_IMAGE, EpochPlan, derived_seed
from fastcifar.data.split import Split
from fastcifar.errors import UserError
from fastcifar.kernels.augment import vector
from fastcifar.machine import free_memory, size_words
from fastcifar.recipes.augmentation import Augment
from fastcifar.recipes.loading import LoadingConfig
from fastcifar.signals import NUMBERS

_AT_ONCE = 1000
"""Images that are preprocessed at once, where all are."""

Choices = tuple[int, int, bool, tuple[int, ...] | None]
"""Top and left of the crop in the image with its border, whether it is mirrored, and top, left, height and width of the
box that is cut out."""


class Preprocess:
    """A function of images uint8 `[N, H, W, 3]` that normalizes them and adds a reflected border of so many pixels:
    float32 `[N, 3, H + 2 border, W + 2 border]`."""

    def __init__(self, border: int, mean: Sequence[float], std: Sequence[float]) -> None:
        like = torch.empty(0, dtype=torch.float32)
        self.border, self.mean = border, vector(mean, like)[:, None, None]
        self.factor = vector([1 / each for each in std], like)[:, None, None]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        mean, factor = self.mean.to(images.device), self.factor.to(images.device)
        planes = images.permute(0, 3, 1, 2).float().sub_(mean).mul_(factor)
        return functional.pad(planes, (self.border,) * 4, mode="reflect").contiguous()

    def all(self, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return all `images`, which lie on the CPU, preprocessed on `device` and copied back."""
        made = torch.empty(preprocessed_shape(tuple(images.shape), self.border), dtype=torch.float32)
        for start in range(0, len(images), _AT_ONCE):
            made[start : start + _AT_ONCE] = self(images[start : start + _AT_ONCE].to(device))
        return made


def preprocessed_shape(shape: tuple[int, ...], border: int) -> tuple[int, ...]:
    """Return the shape of images of `shape`, `[N, H, W, 3]`, once they are preprocessed."""
    count, height, width, channels = shape
    return count, channels, height + 2 * border, width + 2 * border


def changed(image: torch.Tensor, side: int, choices: Choices) -> torch.Tensor:
    """Return a preprocessed image `[3, H, W]` cropped to `side` by `side` pixels, flipped and cut out: a new one."""
    top, left, flip, box = choices
    image = image[:, top : top + side, left : left + side]
    image = image.flip(2) if flip else image.clone()
    if box:
        top, left, height, width = box
        image[:, top : top + height, left : left + width] = 0
    return image


class EpochImages(Dataset[torch.Tensor]):
    """The changed images of an epoch by their position in it, float32 `[3, side, side]` each.

    images: uint8 `[N, H, W, 3]`, or all preprocessed.
    preprocess: makes the second of the first.
    plan: the epoch's, whose order is kept and, with random numbers by epoch, its other choices too.
    augment: what is drawn for an image otherwise.
    batch: images of a full batch. Batches begin at its multiples, where the generator is seeded anew, so that numbers
        do not depend on which worker made the batch before, or whether one was made.
    seeds: of the run, and the epoch's number.
    """

    def __init__(
        self,
        images: torch.Tensor,
        preprocess: Preprocess,
        plan: EpochPlan,
        augment: Augment,
        by_epoch: bool,
        batch: int,
        seeds: tuple[int, int],
    ) -> None:
        self._images, self._preprocess, self._augment = images, preprocess, augment
        self._order, self._side = plan.indices.tolist(), plan.size
        self._batch, self._seeds, self._random = batch, seeds, torch.Generator()
        self._cut = 0 if plan.cutouts is None else int(plan.cutouts[0, 2])
        self._drawn = _choices(plan, augment.crop) if by_epoch else None

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> torch.Tensor:
        row = self._order[position]
        image = self._images[row]
        if image.dtype == torch.uint8:
            image = self._preprocess(image[None])[0]
        return changed(image, self._side, self._drawn[position] if self._drawn else self._draw(position))

    def _draw(self, position: int) -> Choices:
        """Draw the choices of an image, each number by a call of its own, in the distribution of `EpochPlan.draw`."""
        seed, epoch = self._seeds
        if position % self._batch == 0:
            self._random.manual_seed(derived_seed(seed, BY_IMAGE, epoch, position))
        places, cut = 2 * self._augment.crop + 1, self._cut
        top, left = self._below(places), self._below(places)
        flip = self._augment.flip == "random" and self._below(2) == 1
        free = self._side - cut + 1
        return top, left, flip, (self._below(free), self._below(free), cut, cut) if cut else None

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self._random))


def _choices(plan: EpochPlan, border: int) -> list[Choices]:
    """Return the choices of each image of a plan."""
    offsets, flips = (plan.offsets + border).tolist(), plan.flips.tolist()
    cutouts = [None] * len(plan) if plan.cutouts is None else plan.cutouts.tolist()
    return [(*place, flip, box) for place, flip, box in zip(offsets, flips, cutouts, strict=True)]


class HostLoader:
    """The images of one batch after the other, made by `torch.utils.data.DataLoader`; used as a `Feed` is.

    split: the training images, of which a copy is held on the CPU where they do not lie there.
    config, augment: the recipe's `loading` and `augment`.
    batch: images of a full batch.
    mean, std: of red, green and blue, in 0..255 units.

    Labels stay on the device. Each epoch has worker processes of its own, as a DataLoader has by default. Raises
    UserError where the preprocessed images take more memory than is free, and for workers of a process that may have
    none.
    """

    def __init__(
        self,
        split: Split,
        config: LoadingConfig,
        augment: Augment,
        batch: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self._device, self._config, self._augment, self._batch = split.device, config, augment, batch
        if config.workers and multiprocessing.current_process().daemon:  # which may start none
            said = f"loading.workers is {config.workers} in a process that trains beside others"
            raise UserError(f"{said}; allowed: 0, or one run at a time")
        self._preprocess = Preprocess(augment.crop, mean, std)
        if config.preprocess != "visit":
            shape, free = preprocessed_shape((len(split), *split.image_shape), augment.crop), free_memory()
            need = 4 * torch.Size(shape).numel()
            if free is not None and need > free:
                said = f"which takes {size_words(need)} of host memory, and {size_words(free)} are free"
                raise UserError(f"loading.preprocess is {config.preprocess}, {said}; allowed: visit")
        self._source = split.images.cpu()
        self._prepared: torch.Tensor | None = None
        self._batches: Any = None
        shape = min(batch, len(split)), 3, split.side, split.side
        self.images = torch.zeros(shape, dtype=torch.float32, device=split.device)
        """The present batch's images, changed and normalized, in its first rows: float32 `[batch, 3, H, W]` on the
        device, always in the same memory."""
        self.waited = Waits(split.device)
        self.epoch: int | None = None
        """The number of the epoch that it was begun for."""

    def begin(self, plan: EpochPlan, batches: Iterable[tuple[int, int]], epoch: int, seed: int) -> None:
        """Begin with the batches of an epoch that are left.

        plan: the epoch's.
        batches: start and stop in it of each batch, in order.
        epoch: its number.
        seed: the run's.
        """
        self._stop()
        with self.waited:
            if self._prepared is None:
                device = {"host": torch.device("cpu"), "device": self._device}.get(self._config.preprocess)
                self._prepared = self._preprocess.all(self._source, device) if device else self._source
            by_epoch = self._config.random == "epoch"
            facts = plan.to("cpu"), self._augment, by_epoch, self._batch, (seed, epoch)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
                loader = DataLoader(
                    EpochImages(self._prepared, self._preprocess, *facts),
                    batch_sampler=[range(*batch) for batch in batches],  # pyright: ignore[reportArgumentType]
                    num_workers=self._config.workers,
                    pin_memory=self._device.type == "cuda",
                    worker_init_fn=_ignore_signals,
                    generator=torch.Generator(),  # for its workers' seeds, which it draws from the process's otherwise
                )
                self._batches = iter(loader)
            self.epoch = epoch

    def next(self) -> None:
        """Make the next batch the present one. Raises IndexError after the last."""
        with self.waited:
            try:
                batch = next(self._batches)
            except StopIteration:
                raise IndexError("the epoch has no more batches") from None
            except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died while it handed a batch over
                raise RuntimeError(f"DataLoader worker is gone: {error}") from None
            self.images[: len(batch)].copy_(batch, non_blocking=True)

    def end(self) -> None:
        """End the workers and drop the preprocessed images: each training makes its own, within its time."""
        self._stop()
        self._prepared = None

    def _stop(self) -> None:
        batches, self._batches, self.epoch = self._batches, None, None
        if hasattr(batches, "_shutdown_workers"):  # not when it is collected: an error that is told holds it long after
            with contextlib.suppress(RuntimeError):  # of a worker that died before
                batches._shutdown_workers()
            for worker in filter(multiprocessing.Process.is_alive, batches._workers):
                worker.kill()  # torch ends one that hangs by SIGTERM, to which it does not listen


def _ignore_signals(worker: int) -> None:
    """Leave signals, which a terminal or a scheduler sends to workers too, to the training, which ends them."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def told_of_workers() -> Iterator[None]:
    """Raise UserError where torch says in a `with` block, wherever the program is, that a worker died."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if not said.startswith("DataLoader worker"):
            raise
        raise UserError(f"{said.rstrip(' .')}; allowed: fewer loading.workers, or 0, the main thread") from None
