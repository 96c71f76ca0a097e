"""Data sets at paths of the user's own: folders of images, .npz, and what is told of other paths."""

import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcifar.data import Dataset, load_dataset
from fastcifar.data.dataset import fingerprint
from fastcifar.errors import Notice, UserError

RANDOM = np.random.default_rng(11)
PIXELS = RANDOM.integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
NAMES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastcifar" / "converted"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def write(folder, pixels, labels, names=NAMES, ending=".png"):
    """Write images by class, by their numbers."""
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / (names[label] if label >= 0 else "") / f"{number:03}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def by_class(pixels, labels):
    """Return the images in the order of their paths."""
    order = np.argsort(labels, kind="stable")
    return pixels[order], labels[order]


def assert_same(split, pixels, labels):
    assert split.images.numpy().tolist() == np.asarray(pixels).tolist()
    assert split.labels.tolist() == list(labels)


@pytest.mark.parametrize(
    ("train", "test", "val", "ending"),
    [
        ("train", "test", None, ".png"),
        ("Train", "TEST", "val", ".BMP"),
        ("Training", "testing", "valid", ".ppm"),
        ("train", "test", "Validation", ".tiff"),
        ("training", "test", "dev", ".png"),
    ],
)
def test_a_folder_with_train_and_test(place, train, test, val, ending):
    write(place / train, PIXELS, LABELS, ending=ending)
    write(place / test, PIXELS[:5], LABELS[:5], ending=ending)
    if val:
        write(place / val, PIXELS[5:7], LABELS[5:7], ending=ending)
    for _ in range(2):  # read, then from the cache
        found = load_dataset(str(place))
        assert_same(found.train, *by_class(PIXELS, LABELS))
        assert_same(found.test, *by_class(PIXELS[:5], LABELS[:5]))
        if val:
            assert_same(found.val, *by_class(PIXELS[5:7], LABELS[5:7]))
        assert (found.name, found.source, found.classes) == (str(place), str(place), NAMES)
        assert found.sha256 == fingerprint(*(split for split in (found.train, found.test, found.val) if split))
        assert found.mean == pytest.approx(PIXELS.mean((0, 1, 2)))
        assert found.std == pytest.approx(PIXELS.std((0, 1, 2)))


def test_other_folders_of_images_beside_train_are_said_to_be_left_out(place):
    write(place / "train", PIXELS, LABELS)
    for name in ("test", "holdout", "testing"):
        write(place / name, PIXELS[:5], LABELS[:5])
    (place / "docs").mkdir()
    with pytest.warns(
        Notice, match=r"left out beside train/: holdout/, testing/; known are train, training, val, valid"
    ):
        assert_same(load_dataset(str(place)).test, *by_class(PIXELS[:5], LABELS[:5]))


def test_a_class_may_be_named_as_a_split(place):
    write(place, PIXELS, LABELS, ("boat", "train", "training"))
    found = load_dataset(str(place))
    assert found.classes == ("boat", "train", "training") and len(found.train) == 9


@pytest.mark.parametrize("inside", ["", "images"])
def test_a_test_folder_of_images_alone_is_unlabeled(place, inside):
    write(place / "train", PIXELS, LABELS)
    write(place / "test" / inside, PIXELS[:4], [-1] * 4)
    write(place / "val", PIXELS[4:6], LABELS[4:6])
    found = load_dataset(str(place))
    assert_same(found.test, PIXELS[:4], [-1] * 4)
    assert_same(found.val, *by_class(PIXELS[4:6], LABELS[4:6]))


def test_without_a_test_folder_the_validation_images_are_the_test(place):
    write(place / "train", PIXELS, LABELS)
    write(place / "val", PIXELS[:5], LABELS[:5])
    found = load_dataset(str(place))
    assert_same(found.test, *by_class(PIXELS[:5], LABELS[:5]))
    assert found.val is None and found.source == f"{place}, the images in val being the test"


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_fifth_of_each_class_is_the_test_where_there_is_no_other(place, inside):
    pixels = RANDOM.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    labels = np.array([0] * 10 + [1] * 20 + [2] * 10)
    write(place / inside, pixels, labels)
    found = load_dataset(str(place))
    assert [found.test.labels.tolist().count(label) for label in range(3)] == [2, 4, 2]
    here = {image.tobytes() for split in (found.train, found.test) for image in split.images.numpy()}
    assert here == {image.tobytes() for image in pixels} and len(found.train) == 32
    assert found.source == f"{place}, a fifth of each class being the test (seed 0)"

    Image.fromarray(pixels[0]).save(place / inside / "ant" / "new.png")
    tests = {image.tobytes() for image in load_dataset(str(place)).test.images.numpy()}
    assert len({image.tobytes() for image in found.test.images.numpy()} - tests) <= 1


def test_the_same_images_are_the_test_everywhere(place):
    """Known by their names: so a copy of the folder has the same."""
    write(place, PIXELS[:, :1, :1].repeat(4, axis=0), np.repeat(LABELS, 4))
    found = load_dataset(str(place)).test.images
    shutil.copytree(place, place.with_name("copy"))
    assert load_dataset(str(place.with_name("copy"))).test.images.tolist() == found.tolist()
    wanted = ["ant/002.png", "ant/013.png", "ant/038.png", "bee/005.png", "bee/016.png", "bee/043.png"]
    kept = [np.array(Image.open(place / path)).tolist() for path in wanted]
    assert found[:6].tolist() == kept  # never to change: results of other images could not be compared


def test_other_files_are_left_out_with_a_line(place):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:3], LABELS[:3])
    (place / "train" / "ant" / ".DS_Store").write_text("x")
    (place / "train" / "bee" / "more").mkdir()
    (place / "train" / "bee" / "more" / "notes.txt").write_text("x")
    (place / "test" / ".hidden.png").write_text("x")
    with pytest.warns(Notice, match=r"images: 3 files are left out as no images, as train.ant..DS_Store"):
        assert len(load_dataset(str(place)).train) == 12


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("L", lambda pixels: np.repeat(np.array(Image.fromarray(pixels).convert("L"))[..., None], 3, 2)),
        ("P", lambda pixels: np.array(Image.fromarray(pixels).convert("P").convert("RGB"))),
        ("RGBA", lambda pixels: pixels),
    ],
)
def test_images_of_other_modes_get_three_channels(place, mode, wanted):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:1], LABELS[:1])
    Image.fromarray(PIXELS[0]).convert(mode).save(place / "test" / "ant" / "000.png")
    assert load_dataset(str(place)).test.images[0].tolist() == wanted(PIXELS[0]).tolist()


def test_images_of_unequal_sizes_are_resized_as_they_are_read_where_that_is_asked(place):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:2], LABELS[:2])
    Image.fromarray(PIXELS[0, :6]).save(place / "test" / "bee" / "001.png")
    message = r"test.bee.001.png is 6 x 6 pixels; allowed: 8 x 6, as train.ant.000.png, or --resize N, which brings all"
    with pytest.raises(UserError, match=message):
        load_dataset(str(place))
    found = load_dataset(str(place), resize=5)
    wanted = Image.fromarray(PIXELS[0]).resize((5, 6), Image.Resampling.BILINEAR).crop((0, 0, 5, 5))
    assert found.train.images.shape == (12, 5, 5, 3) and found.train.images[0].tolist() == np.array(wanted).tolist()
    (place / "test" / "bee" / "001.png").unlink()  # all are equal: they stay as they are
    assert load_dataset(str(place), resize=5).train.images.shape == (12, 8, 6, 3)


def damaged(path):
    path.write_bytes(path.read_bytes()[:70])


def not_an_image(path):
    path.write_text("<svg/>")


def deep(path):
    Image.fromarray(PIXELS[0, :, :, 0].astype("uint16") * 257).save(path)


def postscript(path):
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 8\nshowpage\n")


def huge(path):
    path.write_bytes(b"P6 60000 60000 255\n" + bytes(100))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, "is damaged: .*truncated"),
        (not_an_image, "is damaged: cannot identify image file"),
        (deep, r"has more than 8 bits a channel \(mode I;16\); allowed: 8, grey or in color"),
        (postscript, "is damaged: cannot identify image file"),
        (huge, "is damaged: Image size .* exceeds limit|is 60000 x 60000 pixels; allowed: up to"),
    ],
)
def test_a_damaged_image_is_named_and_nothing_is_kept(place, cache, change, message):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:1], LABELS[:1])
    change(place / "test" / "ant" / "000.png")
    with pytest.raises(UserError, match=f"^{re.escape(str(place))}.test.ant.000.png {message}") as caught:
        load_dataset(str(place))
    assert "\n" not in str(caught.value) and not cache.exists()


def test_what_is_kept_is_read_until_a_file_changes(place, cache, monkeypatch):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:1], LABELS[:1])
    first = load_dataset(str(place))
    [kept] = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        assert load_dataset(str(place)).sha256 == first.sha256
    kept.write_bytes(kept.read_bytes()[:-2000])  # damaged: made again
    assert load_dataset(str(place)).sha256 == first.sha256
    Image.fromarray(255 - PIXELS[0]).save(place / "test" / "ant" / "000.png")
    os.utime(place / "test" / "ant" / "000.png", ns=(1, 1))  # in the same second
    assert load_dataset(str(place)).test.images[0].tolist() == (255 - PIXELS[0]).tolist()
    assert [*cache.iterdir()] == [kept]


def test_a_folder_is_read_where_nothing_can_be_kept(place, cache):
    write(place, PIXELS, LABELS)
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    with pytest.warns(Notice, match="what was read is not kept for the next time: "):
        assert len(load_dataset(str(place)).train) == 9


WRONG = {
    "holds no images by class; allowed: a folder of images by class": lambda place: None,
    "holds a.h5, b.npz; allowed: a folder of": lambda place: [(place / name).touch() for name in ("a.h5", "b.npz")],
    "holds images of one class, 'ant'; allowed: .* of two classes or more": lambda place: write(
        place, PIXELS[:3], [0] * 3
    ),
    "test holds 'dog', which is no class; allowed: .*'ant', 'bee', 'cow'.*, those of train": lambda place: [
        write(place / "train", PIXELS, LABELS),
        write(place / "test", PIXELS[:6], LABELS[:6], ("ant", "dog", "cow")),
    ],
    "val holds 'x', which is no class": lambda place: [
        write(place / "train", PIXELS, LABELS),
        write(place / "val" / "x", PIXELS[:2], [-1] * 2),
    ],
    r"holds \['a', 'b'\], folders of folders of images, and no train/; allowed: train/ and .*a$": lambda place: [
        write(place / name, PIXELS, LABELS) for name in ("a", "b")
    ],
    r"holds test/ and no train/; allowed: both, or folders of classes": lambda place: write(
        place / "test", PIXELS, LABELS
    ),
    "no class has more than two images, of which a fifth is the test": lambda place: write(
        place, PIXELS[:6], LABELS[:6]
    ),
}


@pytest.mark.parametrize(("message", "make"), WRONG.items())
def test_a_folder_of_another_form_is_refused(message, make, place):
    make(place)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(str(place))
    assert "\n" not in str(caught.value)


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


def test_a_path_is_told_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **arrays())
    Path("folder").mkdir()
    shutil.copy("mine.npz", "folder/data.npz")
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"mine.npz": "mine.npz", "./mine.npz": "mine.npz", "folder": "folder", "folder/": "folder"}
    for word, name in {**names, "~/mine.npz": "mine.npz", "folder/../mine.npz": "mine.npz"}.items():
        assert load_dataset(word).name == str(tmp_path / name)
    assert load_dataset("folder").source == str(tmp_path / "folder" / "data.npz")
    moved = load_dataset(str(tmp_path / "gone.npz"), data_dir="mine.npz")
    assert (moved.name, moved.source) == (str(tmp_path / "gone.npz"), "mine.npz")
    Path("notes.txt").touch()
    wrong = {
        "gone.npz": r"the data set .*gone.npz does not exist; allowed: a folder of images by class .* --data-dir PATH",
        "notes.txt": r"notes.txt is no data set; allowed: a folder",
    }
    for word, message in wrong.items():
        with pytest.raises(UserError, match=message):
            load_dataset(word)


@pytest.mark.parametrize(
    "files",
    [
        ["cifar-10-batches-py/data_batch_1"],
        ["cifar-100-python.tar.gz"],
        ["train.bin", "test.bin"],
    ],
)
def test_a_published_set_is_read_by_its_name(files, place):
    for file in files:
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).touch()
    name = "cifar10" if "10-" in files[0] else "cifar100"
    for path in {place, place / Path(files[0]).parts[0]} if len(files) == 1 else {place}:
        with pytest.raises(
            UserError, match=f"as it is published; allowed: --dataset {name} --data-dir {place}"
        ) as caught:
            load_dataset(str(path))
        assert "\n" not in str(caught.value)
