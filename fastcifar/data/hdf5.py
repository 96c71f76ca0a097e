"""Data sets in HDF5 files, as large as a disk: `images-train`, `labels-train`, and the same of `val` and `test`.

A file is opened and checked, and its labels are read; its images stay there until `place_images` brings them to where
they are to lie. Images without labels are labeled -1, and a set without `test` is tested on `val`, one of training
images alone on a fifth of each class.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import warnings
import weakref
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastcifar.data.archives import damage, state_of
from fastcifar.data.arrays import refuse_other_units, split_off
from fastcifar.data.dataset import Dataset, channel_statistics, fingerprint, given_colors, numbered
from fastcifar.data.download import user_cache
from fastcifar.data.kept import FlatFile, KeptSplit, runs_of
from fastcifar.data.split import Split, pixels_of
from fastcifar.errors import Notice, Unequipped, UserError
from fastcifar.locks import claimed
from fastcifar.output import user_path, write_whole
from fastcifar.recipes.augmentation import by_channel

if TYPE_CHECKING:
    import h5py

PARTS = ("train", "val", "test")
_NAMES = "images-train, images-val and images-test with labels-train, labels-val and perhaps labels-test"
_WHOLE = 4 << 30
"""Bytes of images up to which all are read for their hash and statistics; of more, so many evenly spaced ones."""
_PER_BYTE = 1100
"""Bytes that a byte of a compressed file may come to: deflate's most is 1,032."""
_SAMPLED = "a hash of its labels and of evenly spaced images, 4 GiB of them"
_LONGEST_WAIT = 3600
"""Seconds to wait for another process that unpacks the same images."""
_MOST_NAMES = 100_000
"""Of classes, that a file may give."""
_LARGEST_CHUNK = 256 << 20
"""Bytes that a chunk may have, and as many as its array: it is unpacked whole, however little of it is used."""
_MOST_CHARACTERS = 1000
"""Of a class's name."""


def load_hdf5(path: str | PathLike[str]) -> Dataset:
    """Return the data set in an HDF5 file, whose images stay there.

    Images are uint8 `[N, H, W, 3]`, `[N, 3, H, W]` or, grey and made three channels, `[N, H, W]`, `[N, H, W, 1]` or
    `[N, 1, H, W]`; labels are integers `[N]` or `[N, 1]`. Names of the classes are the attribute `classes` of the file,
    or a data set of strings `classes` or `label_names`; mean and standard deviation, 0 to 255 units, its attributes
    `mean` and `std`, else those of the training images. The sha256 is that of all images and labels (`fingerprint`), of
    more than 4 GiB of images that of evenly spaced ones; it and the statistics are kept in the user's cache.

    Raises UserError for a file that is damaged or holds anything else, and without h5py.
    """
    path = user_path(path, "the HDF5 file").absolute()
    try:
        import h5py
    except ModuleNotFoundError:
        raise Unequipped(f"{path} needs h5py, which is not installed; allowed: pip install 'fastcifar[hdf5]'") from None
    try:
        if not path.is_file():
            raise UserError(f"there is no file {path}; allowed: an HDF5 file")
        if not h5py.is_hdf5(path):
            raise UserError(f"{path} is no HDF5 file; allowed: one with {_NAMES}")
        with damage(str(path)), h5py.File(path, "r") as file:
            return _read(file, path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; allowed: an HDF5 file") from None


def _read(file: h5py.File, path: Path) -> Dataset:
    splits = {part: _split(file, part, path) for part in PARTS if f"images-{part}" in file}
    for part in PARTS:
        if f"labels-{part}" in file and part not in splits:
            raise UserError(f"{path} holds labels-{part} without images-{part}; allowed: both")
    if not splits:
        found = ", ".join(sorted(map(str, file.keys()))[:20]) or "nothing"
        raise UserError(f"{path} holds {found[:300]}; allowed: {_NAMES}, one split or more")
    shape = next(iter(splits.values())).image_shape
    for part, split in splits.items():
        if split.image_shape != shape:
            sides = f"{pixels_of(split)} pixels; allowed: {shape[0]} x {shape[1]}, as the others"
            raise UserError(f"images-{part} in {path} are of {sides}")
    labels = max(split.label_range[1] for split in splits.values())
    classes = _class_names(file, path) or numbered(labels, f"the labels in {path}")
    source = str(path) if "test" in splits else f"{path}, val as the test set"
    if splits.keys() == {"train"}:
        splits, source = split_off(splits["train"]), f"{path}, a fifth of each class being the test"
    train = splits.get("train") or Split(torch.empty(0, *shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    test = splits.get("test") or splits["val"]
    val = splits.get("val") if "test" in splits else None
    parts = [split for split in (train, test, val) if split]
    found = _measured(path, parts)
    facts = {**found, **_attributes(file, path)}
    refuse_other_units(facts["mean"], facts["std"], lambda: (found["mean"], found["std"]), f"{path}: ")
    verified = _SAMPLED if _step(parts) > 1 else ""
    return Dataset(str(path), train, test, classes, **facts, source=source, val=val, verified=verified)


def _split(file: h5py.File, part: str, path: Path) -> KeptSplit:
    """Return a split of the file, whose labels are read."""
    images = _array(file, f"images-{part}", path)
    where, shape = f"images-{part} in {path} is {images.dtype} {list(images.shape)}", images.shape
    if images.dtype != np.uint8:
        raise UserError(f"{where}; allowed: uint8, 0 to 255")
    channels = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in (1, 3)]
    if len(shape) not in (3, 4) or (len(shape) == 4 and not channels):
        raise UserError(f"{where}; allowed: [N, H, W, 3], [N, 3, H, W], or grey, [N, H, W]")
    if len(channels) == 2:
        raise UserError(f"{where}: its channels may come first or last; allowed: images of 4 pixels or more")
    if not images.size:
        raise UserError(f"{where}; allowed: one image or more")
    if channels == [3] and shape[3] == 3 and (offset := images.id.get_offset()) is not None:
        store = FlatFile(path, offset, shape)
    else:
        store = PackedStore(path, f"images-{part}", shape, channels[0] if channels else None)
    return KeptSplit(store, _labels(file, part, shape[0], path))


def _labels(file: h5py.File, part: str, count: int, path: Path) -> torch.Tensor:
    name = f"labels-{part}"
    if name not in file:
        if part == "test":
            return torch.full((count,), -1)
        raise UserError(f"{path} holds images-{part} without {name}; allowed: both")
    labels = _array(file, name, path)
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise UserError(f"{name} in {path} is {labels.dtype} {list(labels.shape)}; allowed: integers [{count}]")
    values = labels[:].reshape(-1)
    least = 0 if part == "train" else -1
    if not (values.min() >= least and values.max() <= np.iinfo(np.int64).max):
        raise UserError(f"{name} in {path} is {values.min()} to {values.max()}; allowed: {least} or more")
    return torch.from_numpy(values.astype(np.int64))


def _own(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return an array of the file itself. Raises UserError for groups, and for links that lead to another file."""
    import h5py

    found = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external or found.shape is None:
        raise UserError(f"{name} in {path} is no array of this file; allowed: an array, no link and no group")
    chunk, size = (math.prod(shape) * found.dtype.itemsize for shape in (found.chunks or (), found.shape))
    if found.chunks and chunk > max(size, _LARGEST_CHUNK):
        said = f"has chunks of {chunk:,} bytes, for {size:,} in all"
        raise UserError(f"{name} in {path} {said}; allowed: up to {_LARGEST_CHUNK:,}, or as many as the array")
    return found


def _array(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return an array of numbers of the file. Raises UserError for a size that the bytes in the file cannot come to,
    before anything of that size is allocated."""
    found = _own(file, name, path)
    if found.dtype.kind not in "iuf":
        raise UserError(f"{name} in {path} is {found.dtype}; allowed: an array of numbers")
    size, stored = math.prod(found.shape) * found.dtype.itemsize, found.id.get_storage_size()
    start, end = found.id.get_offset() or 0, path.stat().st_size
    comes_to = stored * (1 if found.chunks is None else _PER_BYTE)
    if comes_to < size or stored > end or (found.chunks is None and start + size > end):
        raise UserError(f"{path} is damaged: {name} is {list(found.shape)}, but {stored:,} bytes of it are there")
    return found


def _class_names(file: h5py.File, path: Path) -> tuple[str, ...]:
    """Return the names of the classes; none where the file does not say them."""
    found: Any = file.attrs.get("classes")
    for name in ("classes", "label_names"):
        if found is None and name in file:
            array = _own(file, name, path)
            if math.prod(array.shape) > _MOST_NAMES:
                raise UserError(f"{name} in {path} is {list(array.shape)}; allowed: up to {_MOST_NAMES:,} names")
            found = array[()]
    if found is None:
        return ()
    names = found.ravel().tolist() if isinstance(found, np.ndarray) else [found]
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
    if not all(isinstance(name, str) and len(name) <= _MOST_CHARACTERS for name in names):
        raise UserError(f"the classes in {path} are no names; allowed: strings of up to {_MOST_CHARACTERS} characters")
    return tuple(names)


def _attributes(file: h5py.File, path: Path) -> dict[str, tuple[float, ...]]:
    """Return the mean and std that the file says."""
    found = {}
    for name in ("mean", "std"):
        if (given := file.attrs.get(name)) is not None:
            where = f"the attribute {name} of {path}"
            found[name] = given_colors(name, where, np.asarray(given).tolist())
    return found


def _step(splits: Sequence[Split]) -> int:
    """Return the images from one that is read for the hash and the statistics to the next."""
    return max(1, math.ceil(sum(split.nbytes for split in splits) / _WHOLE))


def _measured(path: Path, splits: Sequence[Split]) -> dict[str, Any]:
    """Return sha256, mean and std of the file, which are kept in the user's cache as long as it does not change."""
    same = _state(path)
    with contextlib.suppress(ModuleNotFoundError, OSError, ValueError, KeyError, TypeError, UserError):
        kept = json.loads(_cache_file(path, ".json").read_text(encoding="utf-8"))
        if kept["same"] == same:
            mean, std = by_channel("mean", kept["mean"]), by_channel("std", kept["std"], above=0)
            return {"sha256": str(kept["sha256"]), "mean": mean, "std": std}
    step = _step(splits)
    seen = [split if step == 1 else split.subset(torch.arange(0, len(split), step)) for split in splits]
    sha256 = fingerprint(*seen)
    if step > 1:
        digest = hashlib.sha256(f"{sha256} {[(len(split), *split.image_shape) for split in splits]}".encode())
        for split in splits:
            digest.update(split.labels.numpy().data)
        sha256 = digest.hexdigest()
    mean, std = channel_statistics(next(split for split in seen if len(split)).pieces())
    with contextlib.suppress(ModuleNotFoundError, UserError):
        text = json.dumps({"same": same, "sha256": sha256, "mean": mean, "std": std})
        write_whole(_cache_file(path, ".json"), text)
    return {"sha256": sha256, "mean": mean, "std": std}


def _state(path: Path) -> list[object]:
    """Return what changes when the file is written to."""
    status = path.stat()
    return [1, str(path), *state_of(status)]


def _cache_file(path: Path, ending: str) -> Path:
    """Return the place of what is kept of a file in the user's cache. Raises ModuleNotFoundError without
    platformdirs."""
    return user_cache() / "hdf5" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}{ending}"


class PackedStore:
    """Images in an HDF5 file that do not lie there as in memory: in chunks, compressed, grey, or channels first.

    path, name: the file, and the array in it.
    shape: the array's.
    channels: its axis of the channels; None: grey without one.
    """

    resident = "disk"

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], channels: int | None) -> None:
        import h5py

        sides = [side for axis, side in enumerate(shape) if axis not in (0, channels)]
        self.path, self.name, self.shape, self._channels = path, name, (shape[0], *sides, 3), channels
        file = h5py.File(path, "r")
        self._array: Any = file[name]
        weakref.finalize(self, file.close)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedStore, (self.path, self.name, self._array.shape, self._channels)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        for run in runs_of(rows):
            start = int(rows[run[0]])
            with damage(f"{self.name} in {self.path}"):
                images = self._array[start : start + len(run)]
            if self._channels is None:
                images = images[..., None]
            elif self._channels == 1:
                images = images.transpose(0, 2, 3, 1)
            out[run] = images  # one channel becomes three

    def tensor(self) -> torch.Tensor:
        images = torch.empty(self.shape, dtype=torch.uint8)
        self.read(np.arange(self.shape[0]), images.numpy())
        return images


def flat(split: KeptSplit) -> KeptSplit:
    """Return the split with its images in a file in which they lie as in memory: where they do not, they are written to
    one in the user's cache, once. Raises UserError where there is no room for it."""
    store = split.store
    if not isinstance(store, PackedStore):
        return split
    state = hashlib.sha256(str(_state(store.path)).encode()).hexdigest()[:16]
    try:
        file = _cache_file(store.path, f"-{store.name}-{state}.images")
        file.parent.mkdir(parents=True, exist_ok=True)
        if not _is_unpacked(store, file):
            # So that it is done once; who has waited so long does it too, which only costs time.
            with claimed(file.with_name(f"{file.name}.lock"), wait=_LONGEST_WAIT):
                _unpack(store, file)
        return KeptSplit(FlatFile(file, 0, store.shape), split.labels, split.rows)
    except ModuleNotFoundError as error:
        what = f"{store.name} in {store.path} must be unpacked to the user's cache"
        raise UserError(f"{what}, and {error.name} is not installed; allowed: pip install {error.name}") from None
    except OSError as error:
        raise UserError(f"cannot unpack {store.name} in {store.path}: {error.strerror or error}") from None


def _is_unpacked(store: PackedStore, file: Path) -> bool:
    return file.is_file() and file.stat().st_size == math.prod(store.shape)


def _unpack(store: PackedStore, file: Path) -> None:
    """Write the images to `file`, unless they are there, in place of those of earlier states of their own file."""
    if _is_unpacked(store, file):
        return
    images = KeptSplit(store, torch.zeros(store.shape[0], dtype=torch.int64))
    free = shutil.disk_usage(file.parent).free
    sizes = f"{images.nbytes / 1e9:.1f} GB; free there: {free / 1e9:.1f} GB"
    if free < images.nbytes:
        allowed = "--resident host or device, or a file whose images are neither in chunks nor packed"
        raise UserError(f"{store.name} in {store.path} must be unpacked to {file.parent}: {sizes}; {allowed}")
    warnings.warn(f"{store.name} is unpacked to {file.parent}, once: {sizes}", Notice, stacklevel=3)

    def write(path: Path) -> None:
        with path.open("wb") as out:
            for piece in images.pieces():
                out.write(piece.numpy().data)

    write_whole(file, write)
    for other in file.parent.glob(file.name.rpartition("-")[0] + "-*.images"):
        if other != file:
            other.unlink(missing_ok=True)
