"""Data sets at paths of the user's own: folders of images, and what is told of other paths."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcifar.data import converted, load_dataset
from fastcifar.data.dataset import fingerprint
from fastcifar.errors import Notice, UserError

RANDOM = np.random.default_rng(11)
PIXELS = RANDOM.integers(0, 256, (12, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
NAMES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(converted, "SLOW", 0)
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
    with pytest.warns(Notice, match=r"images: 3 files are left out, no images or in .*, as train.ant..DS_Store"):
        assert len(load_dataset(str(place)).train) == 12


def test_images_behind_links_that_are_not_followed_and_a_second_train_are_named(place, tmp_path):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:3], LABELS[:3])
    write(tmp_path / "elsewhere", PIXELS, LABELS)
    (place / "train" / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    (place / "train" / "bee" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.warns(Notice, match=r"images: 2 files are left out, no images or in .*, as train.ant.more"):
        assert len(load_dataset(str(place)).train) == 12
    (place / "train" / "dog").mkdir()
    (place / "train" / "dog" / "0.png").symlink_to(tmp_path / "nothing.png")
    write(place / "Train", PIXELS, LABELS)
    with pytest.warns(Notice) as told:
        assert load_dataset(str(place)).classes == NAMES
    said = " ".join(str(each.message) for each in told)
    assert "folders without an image are no classes, as that of dog/0.png" in said
    if (place / "train").samefile(place / "Train"):
        pytest.skip("names of files differ by more than case here")
    assert "left out beside train/: Train/" in said


def test_a_class_in_the_test_that_is_written_in_another_way_is_refused(place):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:1], LABELS[:1], ("Ant", "bee", "cow"))
    with pytest.raises(UserError, match="test holds 'Ant', which is no class"):
        load_dataset(str(place))


def test_a_picture_is_turned_as_it_is_shown(place):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:1], LABELS[:1])
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(PIXELS[0, ::-1, ::-1]).save(place / "test" / "ant" / "000.png", exif=exif)
    assert load_dataset(str(place)).test.images[0].tolist() == PIXELS[0].tolist()


def test_a_file_that_is_exchanged_for_one_of_its_size_and_time_is_read_again(place, cache):
    write(place / "train", PIXELS, LABELS, ending=".bmp")
    write(place / "test", PIXELS[:1], LABELS[:1], ending=".bmp")
    files = [*(place / "train").rglob("*.bmp")]
    for file in files:
        os.utime(file, ns=(1, 1))
    first = load_dataset(str(place))
    one, other = place / "train" / "ant" / "000.bmp", next(iter((place / "train" / "bee").iterdir()))
    one.rename(place / "x"), other.rename(one), (place / "x").rename(other)
    found = load_dataset(str(place))
    assert found.sha256 != first.sha256 and found.train.images.tolist() != first.train.images.tolist()


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_folder_without_an_image_that_can_be_read_is_no_class_which_is_said(place, inside):
    write(place / inside, PIXELS, LABELS)
    (place / inside / "bat").mkdir()
    (place / inside / "bee_eater" / "more").mkdir(parents=True)  # empty
    (place / inside / "bat" / "0.heic").write_text("x")
    with pytest.warns(Notice, match=r"folders without an image are no classes, as that of bat/0.heic; read are \.png"):
        assert load_dataset(str(place)).classes == NAMES


def test_images_beside_folders_of_classes_are_named_and_a_split_of_such_alone_is_refused(place):
    write(place / "train", PIXELS, LABELS)
    write(place / "test", PIXELS[:3], LABELS[:3])
    Image.fromarray(PIXELS[0]).save(place / "test" / "beside.png")
    with pytest.warns(Notice, match=r"1 file is left out, no images or in no class's folder, as test.beside.png"):
        assert len(load_dataset(str(place)).test) == 3
    (place / "val").mkdir()
    Image.fromarray(PIXELS[0]).save(place / "val" / "alone.png")
    with pytest.raises(UserError, match=r"val holds no images in folders of classes; allowed: CLASS/\*.png"):
        load_dataset(str(place))


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
    with pytest.warns(Notice, match=f"; {place} is read from its own files every time"):
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


def test_a_path_is_told_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", x_train=PIXELS, y_train=LABELS, x_test=PIXELS, y_test=LABELS)
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
