"""A data set in one file."""

import numpy as np

import fastcifar


@fastcifar.dataset("stripes")
def stripes() -> fastcifar.Dataset:
    """Stripes that lie or stand or are not there."""
    random = np.random.RandomState(0)
    labels = np.arange(512) % 3
    images = random.rand(512, 16, 16, 3) / 2
    images[labels == 0, ::4] += 0.5
    images[labels == 1, :, ::4] += 0.5
    return fastcifar.Dataset.from_arrays(
        images[:448], labels[:448], images[448:], labels[448:], classes=("lying", "standing", "none")
    )
