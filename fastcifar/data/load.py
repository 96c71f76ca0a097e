"""`load_dataset`: a dataset by its name."""

from __future__ import annotations

import dataclasses
import inspect
from os import PathLike, fspath

import torch

from fastcifar.catalogue import DEFAULT_DATASET, find, is_path, name_of
from fastcifar.data.dataset import Dataset
from fastcifar.data.device import resolve_device
from fastcifar.data.residency import Resident, place_images
from fastcifar.errors import UserError
from fastcifar.host import TORCH
from fastcifar.output import user_path
from fastcifar.recipes.declare import checked
from fastcifar.registry import resolve


@TORCH.applied()
def load_dataset(
    name: str | PathLike[str] = DEFAULT_DATASET,
    data_dir: str | PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    holdout: int = 0,
    mirror: str | None = None,
    resident: Resident | None = "auto",
    resize: int = 0,
) -> Dataset:
    """Return the dataset that is registered as `name`, perhaps with a variant (`svhn:extra`), or is at that path,
    which is then its name, whole, so that a run's record finds it again.

    data_dir: the folder or file to read; for sets of several files also a folder above theirs, which has the set's
        name (mnist/). For published sets, the default is `$FASTCIFAR_DATA`, else the user's cache folder, to which they
        are downloaded if need be (`fastcifar/data/cifar.py` lists the forms that CIFAR may have). "synthetic" is made
        in memory and reads nothing. Loaders without such a parameter are not given it. Of a path it says where
        the images are now, if they were moved.
    device: the device of all splits: "cpu", "cuda", "cuda:1" or "auto" (CUDA if there is one).
    holdout: number of training images that take the place of the test set; 0: none.
    mirror: an address to download from before others: of an archive, or of a folder that holds one; http, https or
        file. The default is `$FASTCIFAR_MIRROR`.
    resident: where the images lie while `device` trains on them: "device", "host" or "disk" (HDF5 files alone); "auto":
        the first of these that has room for them and a quarter more (`fastcifar/data/residency.py`). None: where they
        are read from or to, and labels on the CPU, for `place_images` to bring what is left of them elsewhere.
    resize: side in pixels that image files of unequal sizes are brought to as they are read; 0: they are refused.

    Raises UserError for bad input or damaged data, and its subclass DownloadError if a download fails.
    """
    device = resolve_device(device)
    holdout = checked("holdout", holdout, int)
    name = fspath(name)
    entry, variant = find(name)
    load = resolve(entry.load)
    name = name_of(name)
    place = data_dir if data_dir is not None or not is_path(name) else name
    place = None if place is None else user_path(place, "data_dir")
    given = {"data_dir": place, "mirror": mirror, "variant": variant, "resize": resize}
    dataset = load(**{name: given[name] for name in inspect.signature(load).parameters if name in given})
    if not isinstance(dataset, Dataset):
        raise UserError(f"the loader of {name!r} gives a {type(dataset).__name__}; allowed: a fastcifar.Dataset")
    if dataset.name != name:  # a run's record finds it again by this name
        dataset = dataclasses.replace(dataset, name=name)
    if holdout:
        dataset = dataset.hold_out(holdout)
    return dataset if resident is None else place_images(dataset, resident, device)
