"""Files .npz of the user's own: every form that is read, and what is refused by the names in it."""

import zipfile

import numpy as np
import pytest
import torch

from fastcifar.data import Dataset, load_dataset
from fastcifar.errors import UserError

RANDOM = np.random.default_rng(11)
PIXELS = RANDOM.integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
NAMES = ("ant", "bee", "cow")


def assert_same(split, pixels, labels):
    assert split.images.numpy().tolist() == np.asarray(pixels).tolist()
    assert split.labels.tolist() == list(labels)


def arrays(**changes):
    made = {
        "train_images": PIXELS,
        "train_labels": LABELS,
        "test_images": PIXELS[:4],
        "test_labels": LABELS[:4].astype("uint8"),
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def keras(values):
    names = {"images": "x", "labels": "y"}
    return {f"{names[key.split('_')[1]]}_{key.split('_')[0]}": value for key, value in values.items()}


FORMS = {
    "as it is": arrays(),
    "Keras'": keras(arrays(train_labels=LABELS[:, None], test_labels=LABELS[:4, None].astype("uint8"))),
    "channels first": arrays(train_images=PIXELS.transpose(0, 3, 1, 2), test_images=PIXELS[:4].transpose(0, 3, 1, 2)),
    "floats": arrays(train_images=PIXELS / 255, test_images=(PIXELS[:4] / 255).astype("float32")),
    "big-endian, column-major": arrays(
        train_images=np.asfortranarray(PIXELS), train_labels=LABELS.astype(">i4"), test_images=PIXELS[:4].astype(">u2")
    ),
    "classes that are bytes": arrays(classes=np.array(NAMES, "S")),
    "classes": arrays(classes=np.array(NAMES), mean=np.array([1.5, 2, 3]), std=np.array([4, 5, 6], "float32")),
    "labels that are names": arrays(train_labels=np.array(NAMES)[LABELS], test_labels=np.array(NAMES)[LABELS[:4]]),
    "val": arrays(val_images=PIXELS[:2], val_labels=LABELS[:2]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("form", FORMS)
def test_an_npz_is_read_in_every_form(form, save, tmp_path):
    save(tmp_path / "mine.npz", **FORMS[form])
    found = load_dataset(str(tmp_path / "mine.npz"))
    more = {"x_val": PIXELS[:2], "y_val": LABELS[:2]} if form == "val" else {}
    wanted = Dataset.from_arrays(PIXELS, LABELS, PIXELS[:4], LABELS[:4], **more)
    assert found.sha256 == wanted.sha256 and found.name == found.source == str(tmp_path / "mine.npz")
    assert found.classes == (NAMES if "classes" in form or "names" in form else ("0", "1", "2"))
    assert found.mean == ((1.5, 2.0, 3.0) if form == "classes" else wanted.mean)
    assert found.std == ((4.0, 5.0, 6.0) if form == "classes" else wanted.std)


def test_an_npz_may_lack_splits(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=PIXELS.repeat(5, 0), y_train=np.array(NAMES)[LABELS.repeat(5)])
    found = load_dataset(str(path))
    assert torch.bincount(found.train.labels).tolist() == [16] * 3
    assert torch.bincount(found.test.labels).tolist() == [4] * 3
    assert found.source == f"{path}, a fifth of each class being the test" and found.classes == NAMES
    np.savez(path, **arrays(test_labels=None))
    assert load_dataset(str(path)).test.labels.tolist() == [-1] * 4
    np.savez(path, **arrays(test_images=None, test_labels=None, val_images=PIXELS[:3], val_labels=LABELS[:3]))
    found = load_dataset(str(path))
    assert len(found.test) == 3 and found.source == f"{path}, its validation images being the test"
    for train in (
        {"train_images": None, "train_labels": None},
        {"train_images": PIXELS[:0], "train_labels": LABELS[:0]},
    ):
        np.savez(path, **arrays(**train))
        found = load_dataset(str(path))
        assert len(found.train) == 0 and found.mean == pytest.approx(PIXELS[:4].mean((0, 1, 2)))
        assert_same(found.test, PIXELS[:4], LABELS[:4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_images": None}, "mine.npz: test_images is missing, whose labels are test_labels; allowed: both"),
        ({"val_labels": LABELS}, "mine.npz: val_images is missing, whose labels are val_labels; allowed: both"),
        ({"train_labels": None}, "mine.npz: train_labels is missing; allowed: a label for each training image"),
        ({"train_labels": LABELS - 1}, "mine.npz: train_labels is -1 to 1; allowed: 0 or more"),
        ({"classes": np.array(["a", "b"])}, "mine.npz: train_labels is 0 to 2; allowed: 0 to 1"),
        ({"classes": np.array(["a", "b", "a"])}, "mine.npz: two classes are named 'a'"),
        (
            {"mean": np.full(3, 0.5)},
            r"mine.npz: mean is \[0.5, 0.5, 0.5\], the images' is 1.*; allowed: 0 to 255 units",
        ),
        ({"std": np.full(3, 0.25)}, r"mine.npz: std is \[0.25, 0.25, 0.25\], the images' is .*; allowed: 0 to 255"),
        ({"train_labels": LABELS[:5]}, r"train_labels is int64 \[5\]; allowed: integers \[12\]"),
        (
            {"train_labels": np.array(list("abc") * 4, object)},
            r"train_labels is object \[12\]; allowed: an array of num",
        ),
        ({"train_labels": LABELS - 2}, "train_labels is -2 to 0; allowed: 0 or more"),
        ({"train_images": PIXELS[..., :2]}, r"train_images is uint8 \[12, 8, 6, 2\]; allowed: \[N, H, W, 3\]"),
        ({"train_images": PIXELS.astype("int32") * 2}, "train_images is int32 from 0 to 510; allowed: integers from 0"),
        ({"test_images": PIXELS[:4, :5]}, r"the images of .*test_images are \[5, 6\] pixels; allowed: \[8, 6\], as of"),
        ({"classes": np.arange(3)}, r"classes is int64 \[3\]; allowed: texts, one for each class"),
        ({"mean": np.arange(2)}, r"mean is \[0, 1\]; allowed: three numbers"),
        ({"std": np.zeros(3)}, r"std is .*; allowed: three numbers above 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arrays_of_an_npz_that_do_not_fit_are_refused_by_their_names(change, message, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(**change))
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(str(tmp_path / "mine.npz"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape", ["(9999999999, 32, 32, 3)", "(12, -8, -6, 3)", "(12, 8, 6, 30)", "(4611686018427387904, 4)"]
)
def test_no_claim_of_an_npz_is_allocated(shape, tmp_path, monkeypatch):
    np.savez(tmp_path / "true.npz", **arrays())
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    claim = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + PIXELS.tobytes()
    with zipfile.ZipFile(tmp_path / "true.npz") as true, zipfile.ZipFile(tmp_path / "mine.npz", "w") as false:
        for name in true.namelist():
            false.writestr(name, claim if name == "train_images.npy" else true.read(name))
    made, empty = [], np.empty
    monkeypatch.setattr(np, "empty", lambda *args, **how: made.append(args[0]) or empty(*args, **how))
    with pytest.raises(UserError, match=r"mine.npz: train_images|holds 1\.8 GB"):
        load_dataset(str(tmp_path / "mine.npz"))
    assert not [each for each in made if np.prod(np.array(each, "float64")) > 1e6]
