"""`KeptSplit`: a split whose images stay in host memory or in a file, while its labels are on the device."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch

from fastcifar.data.device import resolve_device
from fastcifar.data.split import Split
from fastcifar.errors import UserError

_PIECE = 64 << 20
"""Bytes of images that are read at once, where all are."""
_BUFFERS = 512
"""Images of one read; the system takes up to 1,024 (IOV_MAX)."""


class Store(Protocol):
    """Images uint8 `[N, H, W, 3]` that do not lie on the device."""

    resident: str
    """Where they lie: "host" or "disk"."""
    shape: tuple[int, ...]

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read the images in these rows, int64 `[B]`, in this order into `out`, uint8 `[B, H, W, 3]`. Called by several
        threads at once. Raises UserError where that fails."""
        ...

    def tensor(self) -> torch.Tensor:
        """Return all images as a tensor on the CPU, not copied where they are mapped or in memory."""
        ...


class HostStore:
    """Images in host memory."""

    resident = "host"

    def __init__(self, images: torch.Tensor) -> None:
        self.shape, self._images, self._array = tuple(images.shape), images, images.numpy()

    def __reduce__(self) -> tuple[Any, ...]:  # the images once, not as an array too
        return HostStore, (self._images,)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        np.take(self._array, rows, axis=0, out=out, mode="clip")  # "raise" would write to a copy of `out` first

    def tensor(self) -> torch.Tensor:
        return self._images


class FlatFile:
    """Images that lie in a file as in memory, one behind the other from the byte `offset` on.

    They are read, not mapped: a mapped image is fetched in as many reads as it has pages, and counts as memory of the
    process.
    """

    resident = "disk"

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]) -> None:
        self.path, self.offset, self.shape = path, offset, shape
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (open as long as the store is used)
        weakref.finalize(self, self._file.close)

    def __reduce__(self) -> tuple[Any, ...]:
        return FlatFile, (self.path, self.offset, self.shape)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        images = out.reshape(len(rows), -1)
        size = images.shape[1]
        for run in runs_of(rows):
            for start in range(0, len(run), _BUFFERS):
                part = run[start : start + _BUFFERS]
                self._fill([images[each].data for each in part], self.offset + int(rows[part[0]]) * size)

    def _fill(self, buffers: list[memoryview], place: int) -> None:
        """Read the bytes from `place` on into `buffers`, in as many calls as the system makes of it."""
        while buffers:
            try:
                done = os.preadv(self._file.fileno(), buffers, place)
            except OSError as error:
                self._fail(error.strerror or str(error))
            if not done:
                self._fail("it ends before its last image")
            place += done
            while buffers and done >= len(buffers[0]):
                done -= len(buffers.pop(0))
            if done:
                buffers[0] = buffers[0][done:]

    def _fail(self, reason: str) -> NoReturn:
        raise UserError(f"cannot read {self.path}: {reason}; allowed: a file that stays as it is while it is used")

    def tensor(self) -> torch.Tensor:
        # "c": changes to the tensor would be kept in memory and never reach the file
        return torch.from_numpy(np.memmap(self.path, np.uint8, "c", self.offset, self.shape))


def runs_of(rows: np.ndarray) -> list[np.ndarray]:
    """Return the places in `rows`, int64 `[B]`, of those that lie one behind the other in the store, a list for each
    run of them, in the store's order."""
    order = np.argsort(rows, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1)


def places_of(indices: torch.Tensor, count: int) -> np.ndarray:
    """Return which of `count` images `indices` are, as torch indexes a tensor (bool `[count]`, or integers `[n]`, the
    negative ones from the end): int64 `[n]`, 0 or more. Raises IndexError for those that there are not."""
    given = torch.as_tensor(indices).cpu()
    if given.dtype == torch.bool and given.shape == (count,):
        return given.nonzero()[:, 0].numpy()
    if given.ndim != 1 or given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        kind = f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
        raise IndexError(f"indices are {kind}; allowed: integers [n], or bool [{count}]")
    places = given.long().numpy()
    if len(places) and not -count <= places.min() <= places.max() < count:
        raise IndexError(f"indices are {places.min()} to {places.max()} of {count} images; allowed: those that it has")
    return np.where(places < 0, places + count, places)


class KeptSplit(Split):
    """A split whose images stay in a `store`, from where batches are read; labels as of any split, on the device.

    rows: the places of the split's images in the store, int64 `[N]`; None: all, in order. So a subset copies nothing.

    `images` are all of them on the CPU: as they lie where the split has all, else a copy.
    """

    def __init__(self, store: Store, labels: torch.Tensor, rows: np.ndarray | None = None) -> None:
        count = store.shape[0] if rows is None else len(rows)
        if labels.dtype != torch.int64 or labels.shape != (count,):
            raise UserError(f"labels are {labels.dtype} {list(labels.shape)}; allowed: int64 [{count}], one an image")
        object.__setattr__(self, "store", store)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "resident", store.resident)
        self._take_labels(labels)

    store: Store
    rows: np.ndarray | None

    @property
    def images(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.store.tensor() if self.rows is None else self.read(np.arange(len(self)))

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.store.shape[1:]

    def read(self, places: np.ndarray, pinned: bool = False) -> torch.Tensor:
        """Return a copy of the images at `places`, int64 `[B]`, on the CPU, in memory that CUDA can copy from at once
        if `pinned`."""
        images = torch.empty((len(places), *self.image_shape), dtype=torch.uint8, pin_memory=pinned)
        self.read_into(places, images.numpy())
        return images

    def read_into(self, places: np.ndarray, out: np.ndarray) -> None:
        """Read the images at `places`, int64 `[B]`, into `out`, uint8 `[B, H, W, 3]`."""
        if len(places):
            self.store.read(places if self.rows is None else self.rows[places], out)

    def to(self, device: str | torch.device) -> KeptSplit:
        """Return the same split with its labels on `device`; its images stay where they are."""
        return KeptSplit(self.store, self.labels.to(resolve_device(device)), self.rows)

    def loaded(self, device: torch.device) -> Split:
        if self.resident == "host" and self.rows is None:
            return Split(self.images.to(device), self.labels.to(device))
        images, start = torch.empty((len(self), *self.image_shape), dtype=torch.uint8, device=device), 0
        for piece in self.pieces():
            images[start : start + len(piece)] = piece
            start += len(piece)
        return Split(images, self.labels.to(device))

    def subset(self, indices: torch.Tensor) -> KeptSplit:
        places = places_of(indices, len(self))
        rows = places if self.rows is None else self.rows[places]
        return KeptSplit(self.store, self.labels[torch.from_numpy(places).to(self.device)], rows)

    def at(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.read(places_of(indices, len(self)), pinned=self.device.type == "cuda")
        return images.to(self.device, non_blocking=True), torch.arange(len(images), device=self.device)

    def first(self, count: int) -> torch.Tensor:
        return self.at(torch.arange(min(count, len(self))))[0]

    def pieces(self) -> Iterator[torch.Tensor]:
        at_once = max(1, _PIECE * len(self) // max(1, self.nbytes))
        for start in range(0, len(self), at_once):
            yield self.read(np.arange(start, min(start + at_once, len(self))))
