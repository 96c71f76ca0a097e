"""HDF5 files: what is read of every form, what is refused, and where the images lie."""

import copy
import gc
import pickle
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fastcifar.data import Dataset, hdf5, residency
from fastcifar.data.hdf5 import load_hdf5
from fastcifar.data.own import load_own
from fastcifar.data.residency import place_images
from fastcifar.errors import Notice, UserError

h5py = pytest.importorskip("h5py")

RANDOM = np.random.default_rng(0)
IMAGES = {part: RANDOM.integers(256, size=(count, 6, 6, 3), dtype=np.uint8) for part, count in
          (("train", 40), ("val", 12), ("test", 17))}  # fmt: skip
LABELS = {part: RANDOM.integers(3, size=len(IMAGES[part])) for part in ("train", "val")}
FORMS = {
    "as in memory": (lambda images: images, {}),
    "channels first": (lambda images: images.transpose(0, 3, 1, 2), {}),
    "in chunks": (lambda images: images, {"chunks": (7, 4, 6, 3)}),
    "packed": (lambda images: images, {"chunks": (5, 6, 6, 3), "compression": "gzip", "shuffle": True}),
    "grey": (lambda images: images[..., 0], {}),
    "grey, one channel": (lambda images: images[..., :1], {"compression": "lzf"}),
    "grey, channel first": (lambda images: images[:, None, :, :, 0], {}),
}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return the user's cache folder, which is empty."""
    monkeypatch.setattr(hdf5, "user_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def write(path, images=IMAGES, labels=LABELS, form="as in memory", classes=("a", "b", "ü"), **attributes):
    change, options = FORMS[form]
    with h5py.File(path, "w") as file:
        for part, values in images.items():
            file.create_dataset(f"images-{part}", data=change(values), **options)
        for part, values in labels.items():
            file[f"labels-{part}"] = values
        for name, value in {"classes": classes, **attributes}.items():
            if value is not None:
                file.attrs[name] = value
    return path


def expected(form="as in memory", **changes):
    images = {part: values[..., :1].repeat(3, 3) if "grey" in form else values for part, values in IMAGES.items()}
    arrays = {"x_val": images["val"], "y_val": LABELS["val"], "classes": ["a", "b", "ü"], **changes}
    return Dataset.from_arrays(images["train"], LABELS["train"], images["test"], **arrays)


def splits_of(dataset):
    return [split for split in (dataset.train, dataset.val, dataset.test) if split is not None]


def assert_equal(found, wanted):
    for one, other in zip(splits_of(found), splits_of(wanted), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("resident", ["auto", "device", "host", "disk"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:images-.* is unpacked:fastcifar.errors.Notice")
def test_every_form_is_read_as_the_arrays_it_was_written_from(tmp_path, cache, form, resident):
    wanted = expected(form)
    found = load_hdf5(write(tmp_path / "set.h5", form=form))
    for name in ("sha256", "mean", "std", "classes"):
        assert getattr(found, name) == getattr(wanted, name), name
    placed = place_images(found, resident, CPU)
    lies = {"auto": "device"}.get(resident, resident)
    assert {split.resident for split in splits_of(placed)} == {lies}
    assert_equal(placed, wanted)
    assert_equal(placed.hold_out(9).take(11, balanced=True), wanted.hold_out(9).take(11, balanced=True))
    is_flat = form == "as in memory"
    assert len(list((cache / "hdf5").glob("*.images"))) == (0 if is_flat or resident != "disk" else 3)


def test_a_set_without_a_test_split_is_tested_on_val_and_one_without_train_on_nothing_else(tmp_path):
    parts = {part: IMAGES[part] for part in ("train", "val")}
    found = load_hdf5(write(tmp_path / "two.h5", parts))
    assert found.val is None and len(found.test) == 12 and found.source.endswith("two.h5, val as the test set")
    only = load_hdf5(write(tmp_path / "one.h5", {"val": IMAGES["val"]}, {"val": LABELS["val"]}))
    assert len(only.train) == 0 and torch.equal(only.test.labels, torch.from_numpy(LABELS["val"]))
    for resident in ("device", "host", "disk"):
        with pytest.raises(UserError, match="has test images only"):
            place_images(only, resident, CPU).require_training_images()


def test_of_training_images_alone_a_fifth_of_each_class_is_the_test(tmp_path):
    labels = {"train": np.repeat(np.arange(3), (10, 20, 10))[:, None]}  # [N, 1], as Keras has them
    found = load_hdf5(write(tmp_path / "one.h5", {"train": IMAGES["train"]}, labels))
    assert found.source.endswith("one.h5, a fifth of each class being the test") and found.val is None
    assert torch.bincount(found.test.labels).tolist() == [2, 4, 2]
    assert torch.bincount(found.train.labels).tolist() == [8, 16, 8]
    both = torch.cat([found.train.images, found.test.images]).flatten(1).tolist()
    assert sorted(both) == sorted(IMAGES["train"].reshape(40, -1).tolist())


@pytest.mark.parametrize("form", ["as in memory", "packed"])
def test_a_set_that_is_used_no_more_leaves_no_file_open(tmp_path, form):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_hdf5(write(tmp_path / "set.h5", form=form))
        stores = [split.store for split in splits_of(found)]
        files = [getattr(store, "_file", None) or store._array.file for store in stores]
        del found, stores
        gc.collect()
    assert all(getattr(file, "closed", not file) for file in files)


@pytest.mark.parametrize("name", ["classes", "label_names", None])
def test_names_of_classes_are_read_from_where_they_are(tmp_path, name):
    path = write(tmp_path / "set.h5", classes=None)
    if name:
        with h5py.File(path, "a") as file:
            file[name] = ["cat", "dög", "owl"]
    assert load_hdf5(path).classes == (("cat", "dög", "owl") if name else ("0", "1", "2"))


def test_the_mean_is_the_attribute_where_there_is_one(tmp_path):
    found = load_hdf5(write(tmp_path / "set.h5", mean=[1.5, 2, 3], std=np.float32([4, 5, 6])))
    assert found.mean == (1.5, 2.0, 3.0) and found.std == (4.0, 5.0, 6.0) and found.sha256 == expected().sha256


def test_a_file_is_measured_once_as_long_as_it_does_not_change(tmp_path, monkeypatch):
    path, measured = write(tmp_path / "set.h5"), []
    monkeypatch.setattr(hdf5, "fingerprint", lambda *splits: (measured.append(1), "0" * 64)[1])
    first, second = load_hdf5(path), load_hdf5(path)
    assert len(measured) == 1 and (first.sha256, first.mean, first.std) == (second.sha256, second.mean, second.std)
    write(path, {**IMAGES, "train": IMAGES["train"][:30]}, {**LABELS, "train": LABELS["train"][:30]})
    assert load_hdf5(path).mean != first.mean and len(measured) == 2
    next((hdf5.user_cache() / "hdf5").glob("*.json")).write_text('{"same": 1}')
    load_hdf5(path)
    assert len(measured) == 3


def test_of_many_images_some_are_hashed_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "_WHOLE", IMAGES["train"].nbytes // 2)
    found = load_hdf5(write(tmp_path / "set.h5"))
    assert "evenly spaced images" in found.verified
    for part, place, is_seen in (("images", 0, True), ("images", 1, False), ("labels", 1, True)):
        images, labels = dict(IMAGES), dict(LABELS)
        changed = {"images": images, "labels": labels}[part]
        changed["train"] = changed["train"].copy()
        changed["train"][place] = (changed["train"][place] + 1) % 3
        other = load_hdf5(write(tmp_path / f"{part}{place}.h5", images, labels))
        assert (other.sha256 != found.sha256) == is_seen


def lines(**changes):
    """Return the change of a file that takes arrays from it, and puts in others."""

    def change(file):
        for name, value in changes.items():
            name = name.replace("_", "-")
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value

    return change


def linked(file):
    del file["images-train"]
    file["images-train"] = h5py.ExternalLink("other.h5", "images-train")


def claimed(file):
    del file["images-train"]
    file.create_dataset("images-train", (2**40, 6, 6, 3), np.uint8, chunks=(1, 6, 6, 3), compression="gzip")


def unwritten(file):
    del file["labels-train"]
    file.create_dataset("labels-train", (40,), np.int64)


REFUSED = {
    "float": (lines(images_train=np.zeros((40, 6, 6, 3), np.float32)), "is float32 .*; allowed: uint8, 0 to 255$"),
    "one dimension": (lines(images_train=np.zeros(40, np.uint8)), r"uint8 \[40\]; allowed: \[N, H, W, 3\]"),
    "two channels": (lines(images_train=np.zeros((40, 6, 6, 2), np.uint8)), r"allowed: \[N, H, W, 3\]"),
    "either": (lines(images_train=np.zeros((40, 3, 6, 3), np.uint8)), "may come first or last"),
    "no images": (lines(images_train=np.zeros((0, 6, 6, 3), np.uint8)), "allowed: one image or more"),
    "other sides": (lines(images_val=np.zeros((12, 7, 7, 3), np.uint8)), "are of 7 x 7 pixels; allowed: 6 x 6"),
    "group": (lambda file: (lines(images_train=None)(file), file.create_group("images-train")), "no link and no group"),
    "link": (linked, "no link and no group"),
    "claim": (claimed, r"is damaged: images-train is \[1099511627776"),
    "unwritten": (unwritten, "is damaged: labels-train"),
    "nothing": (lines(images_val=None, images_test=None), "labels-val without images-val; allowed: both"),
    "no labels": (lines(labels_train=None), "images-train without labels-train; allowed: both"),
    "few labels": (lines(labels_train=np.zeros(39, int)), r"int64 \[39\]; allowed: integers \[40\]"),
    "float labels": (lines(labels_train=np.zeros(40)), r"float64 \[40\]; allowed: integers"),
    "unlabeled": (lines(labels_train=np.full(40, -1)), "is -1 to -1; allowed: 0 or more"),
    "huge label": (lines(labels_val=np.full(12, 2**63, np.uint64)), "allowed: -1 or more"),
    "class": (lines(labels_val=np.full(12, 3)), "the val labels are 3 to 3 of 3 classes"),
    "names": (lambda file: file.attrs.__setitem__("classes", [1, 2, 3]), "are no names; allowed: strings"),
    "mean": (lambda file: file.attrs.__setitem__("mean", [0.5, 0.5, 0.5]), "allowed: 0 to 255 units"),
    "std": (lambda file: file.attrs.__setitem__("std", [1.0, 2.0]), "allowed: three numbers"),
    "structure": (lines(images_train=np.zeros(3, [("a", int)])), "allowed: an array of numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused_in_one_line(tmp_path, kind):
    change, message = REFUSED[kind]
    path = write(tmp_path / "set.h5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(UserError, match=message) as refused:
        load_hdf5(path)
    assert str(path) in str(refused.value) or kind == "class"
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_own(path)


@pytest.mark.parametrize("form", ["as in memory", "packed"])
def test_a_damaged_file_is_refused_or_read_and_nothing_else(tmp_path, form):
    names = np.array([b"a", b"b", b"c"])  # of one length: libhdf5 itself may crash over others that are damaged
    whole = write(tmp_path / "set.h5", form=form, classes=names).read_bytes()
    path, random = tmp_path / "damaged.h5", np.random.default_rng(1)
    for number in range(60):
        damaged = bytearray(whole)
        if number % 3:
            for place in random.integers(len(whole) // (3 if number % 2 else 1), size=4):
                damaged[place] ^= 1 << int(random.integers(8))
        else:
            damaged = damaged[: random.integers(len(whole))]
        path.write_bytes(damaged)
        try:
            place_images(load_hdf5(path), "device", CPU)
        except UserError as error:
            assert "\n" not in str(error)


def test_what_is_no_file_and_a_missing_package_are_said(tmp_path, monkeypatch):
    (tmp_path / "text.h5").write_text("no")
    for name, message in (("none.h5", "there is no file"), ("text.h5", "is no HDF5 file"), (".", "there is no file")):
        with pytest.raises(UserError, match=message):
            load_hdf5(tmp_path / name)
    path = write(tmp_path / "set.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'fastcifar\[hdf5\]'$"):
        load_hdf5(path)


FREE = {  # device, host, asked: where the images lie, or what is refused
    (10, 10, "auto"): "device",
    (1.2, 9, "auto"): "host",
    (1.2, 1.2, "auto"): "disk",
    (None, None, "auto"): "device",
    (0.9, 9, "device"): r"resident is device, but images: .* GB; free on meta: .* GB; allowed: host or disk$",
    (9, 0.9, "host"): r"resident is host, but images: .* free on the host: .* allowed: disk$",
    (1.1, 9, "device"): "device",
    (0.1, 0.1, "disk"): "disk",
}


@pytest.mark.parametrize(("device", "host", "asked"), FREE)
def test_images_lie_where_there_is_room_and_their_size_is_said_first(tmp_path, monkeypatch, device, host, asked):
    data = load_hdf5(write(tmp_path / "set.h5"))
    need = sum(split.nbytes for split in splits_of(data))
    free = {"meta": device and int(device * need), "cpu": host and int(host * need)}
    monkeypatch.setattr(residency, "_free", lambda place: free[place.type])
    monkeypatch.setattr(residency, "free_memory", lambda: free["cpu"])
    monkeypatch.setattr(residency, "_LARGE", 1)
    placed = []
    monkeypatch.setattr(residency, "_PLACES", {each: lambda split, _, each=each: (placed.append(each), split)[1]
                                               for each in ("device", "host", "disk")})  # fmt: skip
    result = FREE[device, host, asked]
    if "refused" in result or "but images" in result:
        with pytest.raises(UserError, match=result):
            place_images(data, asked, torch.device("meta"))
        assert not placed
        return
    with pytest.warns(Notice, match=r"^images: 0\.0 GB"):
        place_images(data, asked, torch.device("meta"))
    assert set(placed) == {result}


def test_a_set_in_memory_may_stay_on_the_host_but_is_on_no_disk(tmp_path):
    data = expected()
    placed = place_images(data, "host", CPU)
    assert placed.train.resident == "host" and placed.train.images.data_ptr() == data.train.images.data_ptr()
    assert place_images(placed, "device", CPU).train.images.data_ptr() == data.train.images.data_ptr()
    with pytest.raises(UserError, match="is read into memory; allowed: auto, device, host"):
        place_images(data, "disk", CPU)
    with pytest.raises(UserError, match="resident is 'ram'"):
        place_images(data, "ram", CPU)


def test_a_packed_file_that_finds_no_room_on_the_disk_is_refused_and_leaves_nothing(tmp_path, monkeypatch, cache):
    data = load_hdf5(write(tmp_path / "set.h5", form="packed"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(UserError, match=r"must be unpacked .*: 0\.0 GB; free there: 0\.0 GB"):
        place_images(data, "disk", CPU)
    assert not list((cache / "hdf5").glob("*.images*"))


@pytest.mark.filterwarnings("ignore:images-.* is unpacked:fastcifar.errors.Notice")
def test_threads_unpack_a_file_once_and_what_is_unpacked_of_its_earlier_states_goes(tmp_path, cache):
    path = write(tmp_path / "set.h5", form="packed")
    for _ in range(2):
        with ThreadPoolExecutor(4) as threads:
            placed = list(threads.map(lambda _: place_images(load_hdf5(path), "disk", CPU), range(4)))
        for each in placed:
            assert_equal(each, expected())
        files = {file.name: file.stat().st_ino for file in (cache / "hdf5").glob("*images*")}
        assert len(files) == 3
        place_images(load_hdf5(path), "disk", CPU)
        assert files == {file.name: file.stat().st_ino for file in (cache / "hdf5").glob("*images*")}
        write(path, form="in chunks")


def test_a_file_that_is_cut_while_it_is_used_is_said(tmp_path):
    path = write(tmp_path / "set.h5")
    data = place_images(load_hdf5(path), "disk", CPU)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match="ends before its last image; allowed: a file that stays as it is"):
        data.train.at(torch.arange(40))


@pytest.mark.parametrize("resident", ["host", "disk"])
def test_images_that_are_resized_or_folded_are_those_of_a_resident_set(tmp_path, monkeypatch, resident):
    monkeypatch.setattr("fastcifar.data.kept._PIECE", 1000)  # some at a time
    placed, wanted = place_images(load_hdf5(write(tmp_path / "set.h5")), resident, CPU), expected()
    assert placed.fold(2, 3).train.resident == resident and placed.fold(2, 3).resize(9).train.resident == "host"
    assert_equal(placed.fold(2, 3).resize(9), wanted.fold(2, 3).resize(9))


def test_a_set_of_one_color_is_normalized_alike_from_a_file_and_from_arrays(tmp_path):
    """By a deviation of 1, in the channels that have one value alone."""
    images = {part: np.full_like(values, 7) for part, values in IMAGES.items()}
    images["train"][0, 0, 0, 0] = 8
    arrays = {"x_val": images["val"], "y_val": LABELS["val"], "classes": ["a", "b", "ü"]}
    made = Dataset.from_arrays(images["train"], LABELS["train"], images["test"], **arrays)
    found = load_hdf5(write(tmp_path / "set.h5", images))
    assert found.std == made.std and made.std[1:] == (1.0, 1.0) and found.mean[1:] == (7.0, 7.0)
    np.testing.assert_allclose(made.std[0], images["train"][..., 0].std())


@pytest.mark.parametrize("form", FORMS)
def test_a_set_is_copied_and_pickled_with_its_place(tmp_path, form):
    found = load_hdf5(write(tmp_path / "set.h5", form=form))
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert_equal(again, expected(form))
        assert again.train.resident == "disk" and again.sha256 == found.sha256


@pytest.mark.parametrize("form", ["as in memory", "packed"])
@pytest.mark.parametrize(
    ("resident", "lie"), [("auto", "device"), ("device", "device"), ("host", "host"), ("disk", "host")]
)
def test_images_of_a_file_are_resized_before_they_are_placed(tmp_path, form, resident, lie):
    """The need that is said is that of the resized ones, and those of "disk" lie in host memory."""
    found = place_images(load_hdf5(write(tmp_path / "set.h5", form=form)), resident, CPU, 4)
    assert {split.resident for split in splits_of(found)} == {lie}
    assert_equal(found, expected(form).resize(4))


def test_what_is_left_of_a_file_is_placed_and_no_more(tmp_path, monkeypatch):
    """12 of 40 images fit where the whole file does not."""
    monkeypatch.setattr(residency, "free_memory", lambda: 108 * 60)
    found = load_hdf5(write(tmp_path / "set.h5"))
    with pytest.raises(UserError, match="resident is device, but images: 0"):
        place_images(found, "device", CPU)
    left = place_images(found.take(12), "device", CPU)
    assert left.train.resident == "device" and torch.equal(left.train.images, found.take(12).train.images)
