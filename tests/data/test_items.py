"""Datasets of whatever gives images and labels: torchvision's form, Hugging Face's form, sequences."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from fastcifar.data import Dataset
from fastcifar.errors import UserError

RANDOM = np.random.default_rng(7)
PIXELS = RANDOM.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
LABELS = [2, 0, 1, 1, 2, 0]
NAMES = ("ant", "bee", "cow")


class Vision:
    """A data set as torchvision has them: arrays, and items that a transform makes of them. It has no `__iter__`, and
    no end."""

    def __init__(self, data, targets, transform=None, target_transform=None, classes=NAMES):
        self.data, self.targets, self.transform, self.target_transform = data, targets, transform, target_transform
        self.transforms = None if transform is None and target_transform is None else (transform, target_transform)
        if classes:
            self.classes = list(classes)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, place):
        image, target = Image.fromarray(np.asarray(self.data[place % len(self)])), self.targets[place % len(self)]
        image = image if self.transform is None else self.transform(image)
        return image, target if self.target_transform is None else self.target_transform(target)


class Svhn(Vision):
    """Channels first, and labels by another name."""

    def __init__(self, data, labels):
        super().__init__(data, None, classes=None)
        self.labels = labels

    def __getitem__(self, place):
        return Image.fromarray(self.data[place].transpose(1, 2, 0)), int(self.labels[place])


class Mirrored(Vision):
    """One of the user's own, whose items are not those of its arrays."""

    def __getitem__(self, place):
        image, target = super().__getitem__(place)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), target


class ClassLabel:
    def __init__(self, names):
        self.names = list(names)


class HuggingFace:
    """Rows by column, with the features that say what a column is."""

    def __init__(self, columns, names=NAMES, label="label"):
        self.columns, self.features = columns, {name: object() for name in columns}
        if label in columns and names:
            self.features[label] = ClassLabel(names)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, place):
        return {name: values[place] for name, values in self.columns.items()}

    def __iter__(self):
        return (self[place] for place in range(len(self)))


def to_tensor(image):
    """Return what torchvision's ToTensor does."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


pictures = [Image.fromarray(pixels) for pixels in PIXELS]
SOURCES = {
    "torchvision, arrays": Vision(PIXELS, LABELS),
    "torchvision, a tensor": Vision(torch.from_numpy(PIXELS), torch.tensor(LABELS)),
    "torchvision, a transform": Vision(PIXELS[:, :, ::-1], LABELS, lambda image: to_tensor(image).flip(2)),
    "torchvision, a target_transform": Vision(PIXELS, [label + 1 for label in LABELS], None, lambda label: label - 1),
    "torchvision, channels first": Svhn(PIXELS.transpose(0, 3, 1, 2), np.array(LABELS)),
    "torchvision, other items": Mirrored(np.ascontiguousarray(PIXELS[:, :, ::-1]), LABELS),
    "torch's Subset": Subset(Vision(np.concatenate([PIXELS, PIXELS]), LABELS * 2), range(6, 12)),
    "torch's TensorDataset": TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)),
    "Hugging Face": HuggingFace({"image": pictures, "label": LABELS}),
    "Hugging Face, other columns": HuggingFace({"img": pictures, "fine_label": LABELS, "coarse": LABELS}, NAMES, ""),
    "Hugging Face, tensors": HuggingFace({"img": torch.from_numpy(PIXELS).permute(0, 3, 1, 2), "labels": LABELS}),
    "a list": list(zip(PIXELS, LABELS, strict=True)),
    "a generator": ((image, np.int64(label)) for image, label in zip(pictures, LABELS, strict=True)),
    "lists of floats": [
        [(image / 255).tolist(), torch.tensor([label])] for image, label in zip(PIXELS, LABELS, strict=True)
    ],
    "names": list(zip(PIXELS, [NAMES[label] for label in LABELS], strict=True)),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_same_images_are_the_same_dataset_in_every_form(source):
    dataset = Dataset.from_any(source, list(zip(PIXELS[:2], LABELS, strict=False)), classes=NAMES, name="mine")
    wanted = Dataset.from_arrays(PIXELS, LABELS, PIXELS[:2], LABELS[:2], classes=NAMES)
    assert dataset.sha256 == wanted.sha256 and (dataset.mean, dataset.std) == (wanted.mean, wanted.std)
    assert (dataset.name, dataset.classes, dataset.val) == ("mine", NAMES, None)


@pytest.mark.parametrize(
    "grey",
    [
        *(
            GREY,
            GREY[..., None],
            GREY[:, None],
            torch.from_numpy(GREY),
            GREY / 255,
            GREY[:, None] / np.float32(255),
        ),
        [Image.fromarray(pixels) for pixels in GREY],
        Vision(torch.from_numpy(GREY), torch.tensor(LABELS)),
    ],
)
def test_grey_images_get_three_channels(grey):
    train = grey if isinstance(grey, Vision) else list(zip(grey, LABELS, strict=True))
    images = Dataset.from_any(train, train).train.images
    assert images.tolist() == np.repeat(GREY[..., None], 3, axis=3).tolist()


@pytest.mark.parametrize("name", ["torchvision, arrays", "torch's Subset", "Hugging Face", "names"])
def test_class_names_are_those_that_the_data_set_knows(name):
    assert Dataset.from_any(SOURCES[name], SOURCES[name], val=SOURCES[name]).classes == NAMES


def test_a_transform_that_is_not_set_leaves_the_items_alone():
    """The arrays are taken without an item each, but for some, evenly apart, that are compared."""
    asked = []

    class Counted(Vision):
        def __getitem__(self, place):
            asked.append(place)
            return super().__getitem__(place)

    images, labels = np.repeat(PIXELS, 100, 0), np.repeat(LABELS, 100).tolist()
    Dataset.from_any(Counted(images, labels), Counted(PIXELS, LABELS))
    assert asked == [*range(0, 600, 10), 599, *range(6)]


def test_a_data_set_that_changes_some_of_its_items_gives_those():
    class Noisy(Vision):
        def __getitem__(self, place):
            image, target = super().__getitem__(place)
            return image, (target + 1) % 3 if place in (2, 3) else target

    found = Dataset.from_any(Noisy(PIXELS, LABELS), Vision(PIXELS, LABELS))
    assert found.train.labels.tolist() == [2, 0, 2, 2, 2, 0]


def test_a_damaged_image_of_pillows_is_named_by_its_place():
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
    damaged = Image.open(io.BytesIO(file.getvalue()[:3000]))  # it is read when it is looked at
    with pytest.raises(UserError, match=r"train\[0\] is damaged: "):
        Dataset.from_any([(damaged, 0)], [(damaged, 0)])


@pytest.mark.parametrize("names", [np.array(["left", "right"]), ["left", "right"], iter(["left", "right"])])
def test_names_of_classes_may_be_any_sequence_of_them(names):
    labels = np.array(["left", "right"] * 3)
    found = Dataset.from_arrays(PIXELS, labels, PIXELS, labels, classes=names)
    assert found.classes == ("left", "right") and found.test.labels.tolist() == [0, 1] * 3


def test_test_images_may_be_unlabeled():
    found = Dataset.from_any(
        SOURCES["a list"],
        HuggingFace({"image": pictures[:2], "id": [3, 4]}),
        val=[(PIXELS[0], None), (PIXELS[1], 2), (PIXELS[2], -1)],
    )
    assert found.test.labels.tolist() == [-1, -1] and found.val.labels.tolist() == [-1, 2, -1]
    assert Dataset.from_any(SOURCES["a list"], pictures[:3]).test.labels.tolist() == [-1] * 3
    names = Dataset.from_any(SOURCES["names"], [(PIXELS[0], None), (PIXELS[0], "cow")])
    assert names.test.labels.tolist() == [-1, 2]


def test_images_of_unequal_sizes_are_resized_where_that_is_asked():
    """The whole as torch resizes it with antialiasing, and the middle of that, to within a rounding of Pillow's."""
    pixels = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    train = [(Image.fromarray(pixels), 0), (pixels[:10, :10], 1), (pixels.transpose(2, 0, 1) / 255, 2)]
    images = Dataset.from_any(train, train, resize=8).train.images
    whole = torch.from_numpy(pixels.astype("float64")).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(whole, (8, 12), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    for place in (0, 2):
        assert (images[place] - wanted[:, 2:10]).abs().max() <= 1
    same = Dataset.from_any(Vision(PIXELS[:, :8, :8], LABELS), Vision(PIXELS[:, :8, :8], LABELS), resize=8)
    assert same.train.images.tolist() == PIXELS[:, :8, :8].tolist()


def rows(**columns):
    return HuggingFace({"image": pictures, "label": LABELS, **columns})


WRONG = {
    r"train is a dict of \['train', 'test'\]; allowed: one of these splits": {"train": 1, "test": 2},
    r"train is of type int; allowed: a data set of torchvision's or": 3,
    r"train is of type str; allowed: a data set": "cifar",
    "train holds no images; allowed: one or more": [],
    r"train\[0\] is a ndarray; allowed: \(image, label\)": PIXELS,
    r"train\[0\] is a tuple of 3; allowed: \(image, label\)": [(1, 2, 3)],
    r"train\[0\] has the columns picture, label; allowed: one of each of image, img and label, la": HuggingFace(
        {"picture": pictures, "label": LABELS}
    ),
    r"train\[0\] has the columns image, class; allowed: one of each": HuggingFace({"image": pictures, "class": LABELS}),
    r"the image of train\[1\] is of type str; allowed: an image of Pillow's, an a": [(PIXELS[0], 0), ("cat.png", 1)],
    r"train\[1\] is 8 x 8 pixels; allowed: 8 x 9, as train\[0\], or resize=N": [(PIXELS[0], 0), (PIXELS[0, :, :8], 1)],
    r"train\[0\] is float32 \[2, 3, 8, 9\]; allowed: \[H, W, 3\], \[3, H, W\] or": [(torch.zeros(2, 3, 8, 9), 0)],
    r"train\[0\] is float64 from -1 to -1; allowed: floats from 0 to 1, or int": [(PIXELS[0] * 0.0 - 1, 0)],
    r"train\[0\] is uint8 \[3, 9, 3\]: its channels may come first or last": [(PIXELS[0, :3, :, :3], 0)],
    r"train\[0\] has more than 8 bits a channel \(mode I;16\)": [(Image.fromarray(GREY[0].astype("uint16")), 0)],
    r"the label of train\[0\] is 0.5; allowed: a whole number or a name": [(PIXELS[0], 0.5)],
    r"the label of train\[0\] is int64 \[2\]; allowed: a whole number": [(PIXELS[0], np.array([0, 1]))],
    "the labels of train are names and numbers; allowed: one of them": [(PIXELS[0], 0), (PIXELS[0], "b")],
    "train's labels is -1 to 0; allowed: 0 to 2": [(PIXELS[0], None), (PIXELS[0], 0)],
}


@pytest.mark.parametrize(("message", "train"), WRONG.items())
def test_what_gives_no_images_and_labels_is_refused_by_its_place(message, train):
    with pytest.raises(UserError, match=message) as caught:
        Dataset.from_any(train, SOURCES["a list"], classes=NAMES)
    assert "\n" not in str(caught.value)


def test_splits_of_other_classes_are_refused():
    with pytest.raises(UserError, match=r"the classes of test are \['cow', 'ant', 'bee'\]; allowed: those of train"):
        Dataset.from_any(
            SOURCES["Hugging Face"], HuggingFace({"image": pictures, "label": LABELS}, ["cow", "ant", "bee"])
        )
    with pytest.raises(UserError, match=r"test's labels has 'dog' at 1, which is no class; allowed: \['ant', 'bee"):
        Dataset.from_any(SOURCES["names"], [(PIXELS[0], "ant"), (PIXELS[0], "dog")])
    with pytest.raises(UserError, match=r"resize is -1; allowed: 0 to 4,096 pixels"):
        Dataset.from_any(SOURCES["a list"], SOURCES["a list"], resize=-1)
