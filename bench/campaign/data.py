"""The datasets of the campaign: CIFAR-10, its first part for the smoke, and noise.

`read_first` reads that part in either of two forms: `part1.tar`, strips of 500 images one below the other as lossless
WebP, named in their order, with the labels of the whole set in `labels.npz`; or the first three batches of the binary
version. It does not compute with torch.
"""

from __future__ import annotations

import io
import multiprocessing
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.campaign.campaign import Campaign
from fastcifar.data import Dataset, Split, load_dataset
from fastcifar.data.dataset import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, fingerprint
from fastcifar.data.synthetic import make_noise, make_synthetic
from fastcifar.errors import UserError
from fastcifar.kernels.launch import use_triton
from fastcifar.training import resolve_device

FIRST, HELD = 30_000, 5_000  # training images that the smoke has, and how many of them, the last ones, are its test set
_BATCHES = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin")
_TINY = (128, 64)
_CHECK_SECONDS = 60


def read_first(folder: Path | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first `FIRST` training images, uint8 `[N, 32, 32, 3]`, and their labels; None where `folder` has
    neither form, and may have the whole set. Raises UserError for a form that is damaged."""
    if folder is None:
        return None
    batches = [place for place in (folder / "cifar-10-batches-bin", folder) if (place / _BATCHES[0]).exists()]
    if not batches and not (folder / "part1.tar").exists():
        return None
    try:
        if batches:
            images, labels = _read_batches([batches[0] / name for name in _BATCHES])
        else:
            images, labels = _read_strips(folder / "part1.tar", folder / "labels.npz")
    except (OSError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read the first {FIRST:,} images in {folder}: {error}") from None
    if images.shape != (FIRST, 32, 32, 3) or labels.shape != (FIRST,) or labels.max() >= len(CIFAR10_CLASSES):
        raise UserError(f"{folder} has {len(images):,} images of its first part; allowed: {FIRST:,}, labeled 0 to 9")
    return images, labels


def check(device: str, folder: Path | None, wants_whole: bool, wants_gpu: bool) -> None:
    """Raise UserError where the campaign would fail for want of a device or of data.

    device: the device's name; torch must find it.
    folder: where the data is.
    wants_whole: whether the whole of CIFAR-10 must be there.
    wants_gpu: whether "auto" must be a GPU.

    It looks in a process of its own, since the one that the parts are forked from must touch neither. One that dies or
    hangs is an error too.
    """
    context = multiprocessing.get_context("fork")
    outcome, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(theirs, device, folder, wants_whole, wants_gpu))
    process.start()
    theirs.close()
    try:
        if not outcome.poll(_CHECK_SECONDS):
            raise UserError(f"device and data were looked at for {_CHECK_SECONDS} s without an answer")
        if error := outcome.recv():
            raise error
    except EOFError:
        process.join()
        raise UserError(f"the process that looked at device and data died, exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _tell(outcome: Connection, *asked: Any) -> None:
    """Send what is wrong, or None; this is the process that looks."""
    try:
        _check(*asked)
    except UserError as error:
        outcome.send(error)
    else:
        outcome.send(None)


def _check(device: str, folder: Path | None, wants_whole: bool, wants_gpu: bool) -> None:
    found = resolve_device(device)
    if found.type == "cpu" and device == "auto" and wants_gpu:
        raise UserError("--device is auto, and torch finds no GPU here; allowed: --device cpu, to measure on one")
    if found.type == "cuda" and not use_triton(torch.empty(0, device=found)):
        raise UserError("Triton does not work here, and without it the kernels are not what is measured")
    if wants_whole:
        load_dataset("cifar10", folder)


def _read_batches(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    records = np.concatenate([np.fromfile(path, np.uint8) for path in paths]).reshape(-1, 1 + 3 * 32 * 32)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int64)


def _read_strips(strips: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image  # needed for this form alone

    def decode(strip: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(strip)).convert("RGB")).reshape(-1, 32, 32, 3)

    with tarfile.open(strips) as tar:
        packed = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    with ThreadPoolExecutor() as pool:
        images = np.concatenate(list(pool.map(decode, (packed[name] for name in sorted(packed)))))
    with np.load(labels) as arrays:
        return images, arrays["labels"][: len(images)].astype(np.int64)


def dataset(campaign: Campaign) -> Dataset:
    """Return CIFAR-10 on the campaign's device; with `tiny` a few synthetic images."""
    if campaign.tiny:
        return make_synthetic(*_TINY).to(campaign.device)
    return load_dataset("cifar10", campaign.data, campaign.device)


def smoke_dataset(campaign: Campaign) -> Dataset:
    """Return the first images of CIFAR-10 alone on the campaign's device; with `tiny` as `dataset`."""
    if campaign.tiny:
        return dataset(campaign)
    if campaign.first_images is None:
        whole = load_dataset("cifar10", campaign.data).train
        images, labels = whole.images, whole.labels
    else:
        images, labels = map(torch.from_numpy, campaign.first_images)
    last = FIRST - HELD
    train, test = (Split(images[part], labels[part]) for part in (slice(last), slice(last, FIRST)))
    facts = (CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, fingerprint(train, test))
    part = Dataset("cifar10", train, test, *facts, f"the first {FIRST:,} training images", holdout=HELD)
    return part.to(campaign.device)


def noise(campaign: Campaign, batch_size: int = 0) -> Dataset:
    """Return random images of CIFAR-10's form, for measuring steps and evaluations: four batches, since recipes leave
    some images out, or without `batch_size` as many as CIFAR-10 has; and a test set as large as CIFAR-10's."""
    train, test = _TINY if campaign.tiny else (50_000, 10_000)
    return make_noise(4 * batch_size or train, test, device=campaign.device)
