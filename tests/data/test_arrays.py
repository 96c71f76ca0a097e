"""Datasets made of arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import Dataset, describe
from fastcifar.data.dataset import fingerprint
from fastcifar.errors import Notice, UserError

RANDOM = np.random.default_rng(5)
PIXELS = RANDOM.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0, 2, 2, 1, 0])
FORMS = {
    "uint8": lambda pixels: pixels,
    "int64": lambda pixels: pixels.astype(np.int64),
    "float32": lambda pixels: (pixels / 255).astype(np.float32),
    "float64": lambda pixels: pixels / 255,
    "float16": lambda pixels: (pixels / 255).astype(np.float16),
    "lists": lambda pixels: pixels.tolist(),
    "lists of floats": lambda pixels: (pixels / 255).tolist(),
    "channels first": lambda pixels: pixels.transpose(0, 3, 1, 2),
    "tensor": torch.from_numpy,
    "float tensor": lambda pixels: torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).requires_grad_(),
    "half tensor": lambda pixels: torch.from_numpy(pixels).div(255).half(),
    "strided": lambda pixels: np.concatenate([pixels, pixels], axis=2)[:, :, :5],
    "read only": lambda pixels: np.frombuffer(pixels.tobytes(), dtype=np.uint8).reshape(pixels.shape),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "labels", [np.uint8, np.int32, list, torch.from_numpy], ids=["uint8", "int32", "list", "tensor"]
)
def test_the_same_images_are_the_same_dataset_in_every_form(form, labels):
    y = labels(LABELS)
    dataset = Dataset.from_arrays(form(PIXELS), y, form(PIXELS[:4]), y[:4], name="mine")
    assert dataset.train.images.numpy().tolist() == PIXELS.tolist() and dataset.train.images.is_contiguous()
    assert dataset.test.images.numpy().tolist() == PIXELS[:4].tolist()
    assert dataset.train.labels.tolist() == LABELS.tolist() and dataset.test.labels.tolist() == LABELS[:4].tolist()
    assert (dataset.name, dataset.classes, dataset.val) == ("mine", ("0", "1", "2"), None)
    assert dataset.sha256 == fingerprint(dataset.train, dataset.test)
    assert dataset.mean == pytest.approx(PIXELS.mean((0, 1, 2))) and dataset.std == pytest.approx(PIXELS.std((0, 1, 2)))


@pytest.mark.filterwarnings("ignore:the training images are nearly black:fastcifar.errors.Notice")
@settings(max_examples=30)
@given(st.floats(0, 1), st.sampled_from([np.float32, np.float64]))
def test_floats_are_rounded_to_the_nearest_of_256_values(value, dtype):
    images = np.full((1, 4, 4, 3), value, dtype)
    found = Dataset.from_arrays(images, [0], images, std=(1, 1, 1)).train.images.unique().item()
    assert abs(found - value * 255) <= 0.5 + 1e-4


def test_grey_images_become_three_equal_channels():
    dataset = Dataset.from_arrays(PIXELS[..., 0], LABELS, PIXELS[:2, ..., 1])
    for channel in range(3):
        assert dataset.train.images[..., channel].tolist() == PIXELS[..., 0].tolist()
        assert dataset.test.images[..., channel].tolist() == PIXELS[:2, ..., 1].tolist()


def test_test_and_validation_images_may_be_unlabeled_in_whole_or_in_part():
    dataset = Dataset.from_arrays(PIXELS, LABELS, PIXELS[:4], x_val=PIXELS[4:6], y_val=[-1, 1], classes=["a", "b", "c"])
    assert dataset.test.labels.tolist() == [-1] * 4 and dataset.val.labels.tolist() == [-1, 1]
    assert dataset.val.images.tolist() == PIXELS[4:6].tolist() and dataset.classes == ("a", "b", "c")
    assert dataset.sha256 == fingerprint(dataset.train, dataset.test, dataset.val)
    assert Dataset.from_arrays(PIXELS, LABELS, PIXELS, x_val=PIXELS[4:6]).val.labels.tolist() == [-1, -1]
    assert describe(dataset)["val_counts"] == [0, 1, 0]


def test_given_statistics_and_classes_are_kept():
    dataset = Dataset.from_arrays(
        PIXELS, LABELS, PIXELS, LABELS, mean=[1, 2, 3], std=np.array([4, 5, 6]), classes=[*"abcd"]
    )
    assert (dataset.mean, dataset.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)) and len(dataset.classes) == 4


def test_integers_of_0_and_1_are_said_to_be_nearly_black():
    mask = (PIXELS > 127).astype(int)
    with pytest.warns(
        Notice, match=r"nearly black, 0\.\d+ of 255 in the mean; where 1 is to be white, their values are"
    ):
        dataset = Dataset.from_arrays(mask, LABELS, mask, LABELS)
    assert dataset.mean == pytest.approx(mask.mean((0, 1, 2)))
    again = Dataset.from_arrays(PIXELS, LABELS, PIXELS, mean=(0, 0, 0), std=(255, 255, 255))
    assert again.mean == (0, 0, 0)


def test_a_dataset_holds_copies():
    x, y = PIXELS.copy(), torch.from_numpy(LABELS.copy())
    dataset = Dataset.from_arrays(x, y, x, y)
    x[:], y[:] = 0, 0
    assert dataset.train.images.numpy().tolist() == PIXELS.tolist() and dataset.test.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": PIXELS[..., :2]}, r"x is uint8 \[9, 6, 5, 2\]; allowed: \[N, H, W, 3\], \[N, 3, H, W\] or, grey"),
        ({"x": PIXELS[0, 0]}, r"x is uint8 \[5, 3\]; allowed: \[N, H, W, 3\]"),
        ({"x": PIXELS[:, :3, :3]}, r"x is uint8 \[9, 3, 3, 3\]: its channels may come first or last; allowed: im"),
        ({"x": PIXELS[:, :3]}, r"x is uint8 \[9, 3, 5, 3\]: its channels may come first or last"),
        ({"x": PIXELS[:0]}, r"x is uint8 \[0, 6, 5, 3\]; allowed: one image or more"),
        (
            {"x": PIXELS > 9},
            r"x is bool \[9, 6, 5, 3\], which does not say how bright True is; allowed: x as integers of",
        ),
        ({"x": PIXELS.astype("float32")}, "x is float32 from 0 to 255; allowed: floats from 0 to 1, or integers"),
        ({"x": PIXELS / 255 - 0.5}, "x is float64 from -0.5 to 0.5; allowed: floats from 0 to 1"),
        ({"x": PIXELS * np.nan}, "x is float64 from nan to nan; allowed: floats from 0 to 1"),
        ({"x": PIXELS.astype(int) - 1}, "x is int64 from -1 to 254; allowed: integers from 0 to 255"),
        ({"x": [[[1, 2]], [[1]]]}, "x is no array: .*; allowed: one shape throughout"),
        ({"x_test": PIXELS.astype(int) + 1}, "x_test is int64 from 1 to 256; allowed: integers from 0 to 255"),
        ({"x_test": PIXELS[:, :5]}, r"the images of x_test are \[5, 5\] pixels; allowed: \[6, 5\], as of x"),
        ({"y": LABELS[:8]}, r"y is int64 \[8\]; allowed: integers \[9\], one for each image"),
        ({"y": LABELS / 1}, r"y is float64 \[9\]; allowed: integers \[9\]"),
        ({"y": None}, "y is missing; allowed: a label for each training image"),
        ({"y": LABELS - 1}, "y is -1 to 1; allowed: 0 or more$"),
        ({"mean": (0.5, 0.4, 0.3)}, r"mean is \[0.5, 0.4, 0.3\], the images' is 1.*; allowed: 0 to 255 units"),
        ({"std": (0.5, 0.4, 0.3)}, r"std is \[0.5, 0.4, 0.3\], the images' is .*; allowed: 0 to 255 units"),
        ({"y_test": LABELS - 2}, "y_test is -2 to 0; allowed: 0 or more, and -1 for an unlabeled image"),
        ({"classes": ["a", "b"]}, "y is 0 to 2; allowed: 0 to 1$"),
        ({"classes": "abc"}, "classes is 'abc'; allowed: a list of names"),
        ({"classes": ["a", "b", "a"]}, "two classes are named 'a'; allowed: a name for each"),
        ({"y_val": LABELS}, "y_val is given without x_val; allowed: both, x_val alone or neither"),
        ({"mean": (1, 2)}, r"mean is \(1, 2\); allowed: three numbers, of red, green and blue"),
        ({"mean": 3.5}, "mean is 3.5; allowed: three numbers, of red, green and blue"),
        ({"std": (1, 2, 0)}, r"std is \(1, 2, 0\); allowed: three numbers above 0, of red, green and blue"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arrays_that_do_not_fit_are_refused_in_a_line(change, message):
    arguments = {"x": PIXELS, "y": LABELS, "x_test": PIXELS, "y_test": LABELS, **change}
    with pytest.raises(UserError, match=message) as caught:
        Dataset.from_arrays(**arguments)
    assert "\n" not in str(caught.value)
