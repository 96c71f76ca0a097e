"""Reading the dataset from each unpacked form, and an epoch of the loader with each augmentation.

On images in CIFAR-10's own files, made up: a tenth as many, or with `--full` as many. Files that were just written are
read from the system's cache.
"""

import dataclasses

import numpy as np
import pytest
import torch

from fastcifar.data import Augment, Loader
from fastcifar.data.cifar import load_release
from fastcifar.data.releases import CIFAR10
from fastcifar.data.synthetic import make_synthetic

AUGMENTS = {
    "none": Augment(crop=0, flip="none"),
    "crop, flip": Augment(crop=4, flip="random"),
    "crop, flip, cutout": Augment(crop=4, flip="random", cutout=8),
    "crop, flip, jitter": Augment(crop=4, flip="alternating", brightness=0.2, contrast=0.2),
}


@pytest.fixture(scope="module")
def dataset(full):
    records = 10_000 if full else 1_000
    return make_synthetic(5 * records, records)


@pytest.fixture(scope="module")
def release(dataset):
    return dataclasses.replace(CIFAR10, records=(len(dataset.test),) * 6)


def batches(dataset):
    """Yield the six batches as they are in CIFAR-10's files: labels `[N]` and pixels `[N, 3072]`, by channel."""
    size = len(dataset.test)
    for split in (dataset.train, dataset.test):
        for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
            yield labels.numpy(), images.permute(0, 3, 1, 2).reshape(size, -1).numpy()


@pytest.mark.benchmark(group="load")
@pytest.mark.reference("copy")
def test_load_the_unpacked_binary_version(timed, dataset, release, tmp_path):
    folder = tmp_path / release.binary.folder
    folder.mkdir()
    for name, (labels, pixels) in zip(release.binary.batches, batches(dataset), strict=True):
        (folder / name).write_bytes(np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1).tobytes())
    assert torch.equal(load_release(release, tmp_path).test.images, dataset.test.images)
    timed(lambda: load_release(release, tmp_path))


@pytest.mark.benchmark(group="load")
@pytest.mark.reference("copy")
def test_load_an_npz(timed, dataset, release, tmp_path):
    path = tmp_path / "cifar10.npz"
    arrays = {
        f"{name}_{kind}": getattr(split, kind).numpy()
        for name, split in (("train", dataset.train), ("test", dataset.test))
        for kind in ("images", "labels")
    }
    np.savez(path, **arrays)
    assert torch.equal(load_release(release, path).test.images, dataset.test.images)
    timed(lambda: load_release(release, path))


@pytest.mark.benchmark(group="loader epoch")
@pytest.mark.reference("copy")
@pytest.mark.parametrize("augment", AUGMENTS)
def test_loader_epoch(timed, dataset, device, augment):
    split = dataset.train.to(device)
    loader = Loader(split, 500, AUGMENTS[augment], mean=dataset.mean, std=dataset.std)

    def epoch():
        for _ in loader:
            pass

    timed(epoch)
