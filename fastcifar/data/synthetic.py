"""The synthetic dataset: ten classes that a network can learn but not perfectly, in place of CIFAR-10. Also noise, for
what depends on the form of images alone."""

from __future__ import annotations

import numpy as np
import torch

from fastcifar.data.dataset import Dataset, Split, channel_statistics, fingerprint

_SIDE = 32
_SHIFT = 4
_CHUNK = 500


def make_synthetic(train_size: int = 10_000, test_size: int = 2_000, seed: int = 0) -> Dataset:
    """Make images uint8 `[N, 32, 32, 3]` of ten classes, all equally frequent to within one image.

    A class is a smooth random pattern. An image shows it shifted by up to four pixels, mirrored or not, mixed with the
    weaker pattern of another class, in some images not much weaker, and noise. The mean color is independent of the
    class. Integers only, from a frozen random stream: the same bytes on every machine.
    """
    random = np.random.RandomState(seed)
    patterns = _patterns(random)
    total = train_size + test_size
    labels = np.concatenate([random.permutation(np.arange(size) % 10) for size in (train_size, test_size)])
    others = (labels + random.randint(1, 10, total)) % 10
    weights = random.randint([9, 0], [17, 13], (total, 2)).astype(np.int16)  # of the own and the other pattern, in 1/16
    places = random.randint(0, patterns.shape[1], (total, 2))
    images = np.empty((total, patterns.shape[2]), dtype=np.uint8)
    for start in range(0, total, _CHUNK):
        rows = slice(start, start + _CHUNK)
        noise = np.frombuffer(random.bytes(images[rows].size), dtype=np.int8) >> 1
        own = patterns[labels[rows], places[rows, 0]] * weights[rows, :1]
        other = patterns[others[rows], places[rows, 1]] * weights[rows, 1:]
        images[rows] = ((own + other >> 4) + noise.reshape(own.shape) + 128).clip(0, 255)
    images, labels = torch.from_numpy(images.reshape(total, _SIDE, _SIDE, 3)), torch.from_numpy(labels.astype(np.int64))
    train = Split(images[:train_size], labels[:train_size])
    test = Split(images[train_size:], labels[train_size:])
    mean, std = channel_statistics(train.images)
    names = tuple(f"pattern {number}" for number in range(10))
    return Dataset("synthetic", train, test, names, mean, std, fingerprint(train, test), f"made from seed {seed}")


def make_noise(
    train_size: int, test_size: int = 1, side: int = 32, classes: int = 10, device: str | torch.device = "cpu"
) -> Dataset:
    """Draw random pixels and labels on `device`, always the same there: for measuring."""
    random = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    train, test = (
        Split(
            torch.randint(256, (size, side, side, 3), dtype=torch.uint8, **random),
            torch.randint(classes, (size,), **random),
        )
        for size in (train_size, test_size)
    )
    middle, spread = (127.5, 127.5, 127.5), (73.9, 73.9, 73.9)  # of all 256 values, equally frequent
    return Dataset("noise", train, test, tuple(map(str, range(classes))), middle, spread, "", "drawn at random")


def _patterns(random: np.random.RandomState) -> np.ndarray:
    """Return each class's pattern at each shift, plain and mirrored: int16 `[10, 2 * 9 * 9, 32 * 32 * 3]`, around 0."""
    coarse = random.randint(-96, 97, (10, 4, 4, 3))
    coarse = 16 * coarse - coarse.sum(axis=(1, 2), keepdims=True)  # 16 times the pattern, so that its mean is 0
    smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)
    for axis in (1, 2):
        smooth = sum((np.roll(smooth, step, axis) for step in range(8)), start=np.zeros_like(smooth))
    smooth //= 16 * 8 * 8
    steps = range(-_SHIFT, _SHIFT + 1)
    shifts = [(down, right) for down in steps for right in steps]
    moved = [np.roll(side, shift, axis=(1, 2)) for side in (smooth, smooth[:, :, ::-1]) for shift in shifts]
    return np.stack(moved, axis=1).astype(np.int16).reshape(10, len(moved), -1)
