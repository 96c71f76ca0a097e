"""Where the images of a data set lie while a device trains on them: there, in host memory or on disk."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from fastcifar.data.dataset import Dataset, Split
from fastcifar.data.hdf5 import flat
from fastcifar.data.kept import HostStore, KeptSplit
from fastcifar.errors import Notice, UserError
from fastcifar.machine import free_memory
from fastcifar.recipes.declare import checked

Resident = Literal["auto", "device", "host", "disk"]
_SHARE = 0.8
"""The part of free memory that images may take of their own accord: the rest is the training's."""
_LARGE = 10**9
"""Bytes of images from which on it is said where they go."""


def place_images(dataset: Dataset, resident: Resident, device: torch.device, resize: int | None = None) -> Dataset:
    """Return the dataset to train with on `device`, its labels there and its images where `resident` says.

    resident: "device"; "host", in this process's memory, from where batches are read ahead of time; "disk", in the HDF5
        file; "auto": on the device where they take up to 80% of its free memory, else in host memory under the same
        rule, else on disk.
    resize: the side of `Dataset.resize`; None: their own. Images in a file are resized before they are placed, in host
        memory, where those of "disk" then stay; others where they lie afterwards.

    How much there is and how much is free is said before anything large is loaded. Raises UserError for images that do
    not fit, and for "disk" where there is no file to read them from.
    """
    resident = checked("resident", resident, Resident)
    splits = [split for split in (dataset.train, dataset.val, dataset.test) if split is not None]
    on_disk = any(split.resident == "disk" for split in splits)
    if on_disk and resize and (resized := dataset.resize(resize)) is not dataset:
        return place_images(resized, "host" if resident == "disk" else resident, device)
    placed = _placed(dataset, splits, resident, device, on_disk)
    return placed.resize(resize) if resize else placed


def _placed(
    dataset: Dataset, splits: Sequence[Split], resident: Resident, device: torch.device, on_disk: bool
) -> Dataset:
    if resident == "disk" and not on_disk:
        raise UserError(f"resident is disk, but {dataset.name} is read into memory; allowed: auto, device, host")
    need = sum(split.nbytes for split in splits)
    in_memory = all(split.resident == "device" for split in splits)
    if in_memory and (need < _LARGE or device.type == "cpu") and resident != "host":
        return dataset.to(device)
    free = {"device": _free(device), "host": free_memory() if on_disk else None, "disk": None}
    if resident == "auto":
        fits = [place for place, there in free.items() if there is None or need <= _SHARE * there]
        place = next(place for place in fits if on_disk or place != "disk")
    else:
        place = resident
    there = free[place]
    sizes = f"images: {need / 1e9:.1f} GB"
    if there is not None:
        sizes += f"; free on {device if place == 'device' else 'the host'}: {there / 1e9:.1f} GB"
        if need > there:
            others = " or ".join(["host"] * (place == "device") + ["disk"] * on_disk) or "fewer images"
            raise UserError(f"resident is {place}, but {sizes}; allowed: {others}")
    if need >= _LARGE:
        warnings.warn(f"{sizes}; they lie {_WORDS[place]}", Notice, stacklevel=2)
    return _each(dataset, lambda split: _PLACES[place](split, device))


_WORDS = {"device": "on the device", "host": "in host memory", "disk": "on disk"}


def _on_host(split: Split, device: torch.device) -> Split:
    if isinstance(split, KeptSplit) and split.resident == "host":
        return split.to(device)
    images = split.loaded(torch.device("cpu")).images
    return KeptSplit(HostStore(images), split.labels).to(device)


def _on_disk(split: Split, device: torch.device) -> Split:
    return flat(split).to(device) if isinstance(split, KeptSplit) and len(split) else split.loaded(device)


_PLACES: dict[str, Callable[[Split, torch.device], Split]] = {
    "device": lambda split, device: split.loaded(device),
    "host": _on_host,
    "disk": _on_disk,
}


def _each(dataset: Dataset, change: Callable[[Split], Split]) -> Dataset:
    changed: dict[str, Any] = {"train": change(dataset.train), "test": change(dataset.test)}
    if dataset.val is not None:
        changed["val"] = change(dataset.val)
    return dataclasses.replace(dataset, **changed)


def _free(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
