"""What is published of each data set, as data: archives, the files in them, classes and colors."""

from __future__ import annotations

from dataclasses import dataclass

from fastcifar.catalogue import DATASETS
from fastcifar.data.dataset import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD
from fastcifar.data.fetch import Pinned


@dataclass(frozen=True)
class Archive(Pinned):
    """An official archive; the folder that it unpacks to holds the release's batches."""

    batches: tuple[str, ...] = ()
    """File names of the training batches and, the last, the test batch."""
    batch_md5: tuple[str, ...] = ()
    """The md5 of each, as many people list them; none where none are published."""


@dataclass(frozen=True)
class Release:
    """A data set of 32x32 pixels in Krizhevsky's two forms."""

    name: str
    """As in the catalogue."""
    title: str
    """As in messages."""
    records: tuple[int, ...]
    """Images in each batch, the last for the test set."""
    labels: tuple[tuple[str, int], ...]
    """An image's labels: the name of each in the Python version, and its number of classes. A binary record begins with
    a byte for each. The last is the one that is learned."""
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    binary: Archive
    python: Archive
    homes: tuple[str, ...]
    """Addresses of these archives."""

    @property
    def archives(self) -> tuple[Archive, Archive]:
        return self.binary, self.python


_CIFAR10_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")

CIFAR10 = Release(
    "cifar10",
    "CIFAR-10",
    records=(10_000,) * 6,
    labels=(("labels", 10),),
    classes=CIFAR10_CLASSES,
    mean=CIFAR10_MEAN,
    std=CIFAR10_STD,
    binary=Archive(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        170_052_171,
        "c32a1d4ab5d03f1284b67883e8d87530",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        tuple(f"{name}.bin" for name in _CIFAR10_BATCHES),
    ),
    python=Archive(
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        170_498_071,
        "c58f30108f718f92721af3b95e74349a",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        _CIFAR10_BATCHES,
        (
            *("c99cafc152244af753f735de768cd75f", "d4bba439e000b95fd0a9bffe97cbabec"),
            *("54ebc095f3ab1f0389bbae665268c751", "634d18415352ddfa80567beed471001a"),
            *("482c414d41f54cd18b22e5b47cb7c3cb", "40351d587109b95175f43aff81a1287e"),
        ),
    ),
    homes=DATASETS["cifar10"].homes,
)

_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""

CIFAR100 = Release(
    "cifar100",
    "CIFAR-100",
    records=(50_000, 10_000),
    labels=(("coarse_labels", 20), ("fine_labels", 100)),
    classes=tuple(_FINE.split()),
    mean=(129.30, 124.07, 112.43),
    std=(68.17, 65.39, 70.42),
    binary=Archive(
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        168_513_733,
        "03b5dce01913d631647c71ecec9e9cb8",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ("train.bin", "test.bin"),
        ("6172c7755cfe09b2fe270c85cebc1b15", "4499cfba6c016c1be1438163640a0898"),
    ),
    python=Archive(
        "cifar-100-python.tar.gz",
        "cifar-100-python",
        169_001_437,
        "eb9058c3a382ffc7106e4002c42a8d85",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        ("train", "test"),
        ("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
    homes=DATASETS["cifar100"].homes,
)
