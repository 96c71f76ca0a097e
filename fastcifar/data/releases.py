"""What is published of each data set, as data: archives, the files in them, classes and colors."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    a byte for each."""
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    binary: Archive
    python: Archive
    homes: tuple[str, ...]
    """Addresses of these archives."""
    learned: int = -1
    """Which of the labels is the one that is learned: the last unless given."""

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

_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
CIFAR100_COARSE = replace(CIFAR100, name="cifar100:coarse", classes=tuple(_COARSE.split()), learned=0)


@dataclass(frozen=True)
class Published:
    """A data set that is published as files which are read as they are."""

    name: str
    """As for `load_dataset`."""
    title: str
    """As in messages."""
    files: tuple[Pinned, ...]
    """Their sizes and hashes are as published, by their authors or by the loaders that most people use (torchvision,
    TensorFlow Datasets)."""
    records: tuple[int, ...]
    """Images in each part, the last for the test set."""
    folders: tuple[str, ...]
    """Names of folders that hold the files: in the user's cache the first."""
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of the training images in 0..255 units, as published; of test images alone those that CIFAR-10 is normalized
    with."""
    homes: tuple[str, ...]


def _scaled(*shares: float) -> tuple[float, float, float]:
    """Return values that are published in 0..1, as one number for grey images, in 0..255 units."""
    red, green, blue = (round(255 * share, 2) for share in (shares * 3 if len(shares) == 1 else shares))
    return red, green, blue


_DIGITS = tuple("0123456789")
_MAT, _NPY = b"MATLAB 5.0 MAT-file", b"\x93NUMPY"


def _svhn(part: str, size: int, md5: str, sha256: str) -> Pinned:
    return Pinned(f"{part}_32x32.mat", "svhn", size, md5, sha256, start=_MAT)


SVHN = Published(
    "svhn",
    "SVHN",
    files=(
        _svhn(
            *("train", 182_040_794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        _svhn(
            *("test", 64_275_384, "eb5a983be6a315427106f1b164d9cef3"),
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    ),
    records=(73_257, 26_032),
    folders=("svhn", "SVHN"),
    classes=_DIGITS,
    mean=_scaled(0.4377, 0.4438, 0.4728),
    std=_scaled(0.1980, 0.2010, 0.1970),
    homes=DATASETS["svhn"].homes,
)
SVHN_EXTRA = replace(
    SVHN,
    name="svhn:extra",
    title="SVHN with its extra images",
    files=(
        SVHN.files[0],
        _svhn(
            *("extra", 1_329_278_602, "a93ce644f1a588dc4d68dda5feec44a7"),
            "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
        ),
        SVHN.files[1],
    ),
    records=(73_257, 531_131, 26_032),
    mean=_scaled(0.4309, 0.4302, 0.4463),
    std=_scaled(0.1965, 0.1983, 0.1994),
)


def _idx(folder: str, *facts: tuple[int, str, str]) -> tuple[Pinned, ...]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(Pinned(f"{name}-ubyte.gz", folder, *each) for name, each in zip(names, facts, strict=True))


MNIST = Published(
    "mnist",
    "MNIST",
    files=_idx(
        "mnist",
        (
            *(9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            *(28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            *(1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            *(4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    records=(60_000, 10_000),
    folders=("mnist", "MNIST/raw", "MNIST"),
    classes=_DIGITS,
    mean=_scaled(0.1307),
    std=_scaled(0.3081),
    homes=DATASETS["mnist"].homes,
)
FASHION_MNIST = Published(
    "fashion-mnist",
    "Fashion-MNIST",
    files=_idx(
        "fashion-mnist",
        (
            *(26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        (
            *(29_515, "25c81989df183df01b3e8a0aad5dffbe"),
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        (
            *(4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        (
            *(5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    records=(60_000, 10_000),
    folders=("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    mean=_scaled(0.2860),
    std=_scaled(0.3530),
    homes=DATASETS["fashion-mnist"].homes,
)


def _cifar10_1(version: str, records: int, data: tuple[int, str], labels: tuple[int, str]) -> Published:
    named = {"data": data, "labels": labels}
    return Published(
        "cifar10.1" if version == "v6" else f"cifar10.1:{version}",
        f"CIFAR-10.1 {version}",
        files=tuple(
            Pinned(f"cifar10.1_{version}_{part}.npy", "cifar10.1", size, "", sha256, start=_NPY)
            for part, (size, sha256) in named.items()
        ),
        records=(0, records),
        folders=("cifar10.1", "CIFAR-10.1", "CIFAR-10.1/datasets"),
        classes=CIFAR10_CLASSES,
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        homes=DATASETS["cifar10.1"].homes,
    )


CIFAR10_1 = {
    "": _cifar10_1(
        *("v6", 2_000),
        (6_144_128, "2997188e5816f5bd545dc77771b6227828c28146049fcecf3fa10775474cacc6"),
        (8_128, "ae40beda001693674edc94d925ee8268cfe68905f8f9aff800c8dcdfcd6c9448"),
    ),
    "v4": _cifar10_1(
        *("v4", 2_021),
        (6_208_640, "5aaedc268df8f4cffca2ac0cf9e608ae1897a8cddb630c7a850a2ea8f6558e75"),
        (8_212, "1f9544300ded199539b6662364ce7fe6c2e1ea9f87408f06db4b1a6184cffb18"),
    ),
}
"""By its variant."""
CIFAR10_C = Published(
    "cifar10-c",
    "CIFAR-10-C",
    files=(
        Pinned(
            *("CIFAR-10-C.tar", "cifar10-c", 2_918_471_680, "56bf5dcef84df0e2308c6dcbcbbd8499"),
            "c72763e101c723b7c507b96205f7e938912a5d587376173b825850cf3cb876a7",
            start=b"",
        ),
    ),
    records=(0, 10_000),
    folders=("cifar10-c", "CIFAR-10-C", "cifar10-c/CIFAR-10-C"),
    classes=CIFAR10_CLASSES,
    mean=CIFAR10_MEAN,
    std=CIFAR10_STD,
    homes=DATASETS["cifar10-c"].homes,
)
