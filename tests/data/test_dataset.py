import copy
import dataclasses
import hashlib
import json
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import Augment, Dataset, Loader, Split, describe, load_dataset, resolve_device, subset_indices
from fastcifar.data.dataset import fingerprint
from fastcifar.errors import UserError
from fastcifar.recipes import Recipe
from fastcifar.training import Trainer

# Changing these changes what old results were measured on.
GOLDEN_PLAIN = [12196, 16668, 26247, 34590, 35067]
GOLDEN_HOLDOUT = "f67f89a6e1e567c6add83dd1dbc7c000990cfb1bac45cf291c9e43386080a6d7"
GOLDEN_SYNTHETIC = "b447e3c16ffdc1a2d830aa69d32c8d92259802ba164c74eaf1b8dde73d0be12a"


def make_dataset(labels):
    labels = torch.as_tensor(labels)
    images = torch.arange(len(labels)).to(torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3).contiguous()
    train, test = Split(images, labels), Split(images[:2], labels[:2])
    return Dataset("synthetic", train, test, ("a", "b", "c"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "0" * 64, "here")


def wide_split():
    return Split(torch.zeros(3, 4, 6, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_a_split_refuses_tensors_that_do_not_fit():
    images, labels = torch.zeros(5, 4, 4, 3, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)
    assert len(Split(images, labels)) == 5 and Split(images, labels).device == torch.device("cpu")
    for wrong in (images.float(), images.permute(0, 3, 1, 2), images[0]):
        with pytest.raises(UserError, match=r"images are .*; allowed: uint8 \[N, H, W, 3\]"):
            Split(wrong, labels)
    for wrong in (labels[:4], labels.int(), labels[:, None]):
        with pytest.raises(UserError, match=r"labels are .*; allowed: int64 \[5\]"):
            Split(images, wrong)
    with pytest.raises(UserError, match="images are on meta and labels on cpu; allowed: one device"):
        Split(images.to("meta"), labels)


def test_a_split_takes_a_subset_in_the_order_asked_for():
    split = make_dataset([0, 1, 2, 1]).train
    part = split.subset(torch.tensor([3, 0]))
    assert part.images[:, 0, 0, 0].tolist() == [3, 0] and part.labels.tolist() == [1, 0]
    assert split.subset(split.labels == 1).images[:, 0, 0, 0].tolist() == [1, 3]


def test_to_moves_both_splits():
    moved = make_dataset([0, 1, 2]).to("meta")
    assert moved.train.device.type == moved.test.device.type == "meta"
    assert moved.classes == ("a", "b", "c")


@settings(max_examples=40)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=60), st.integers(0, 3), st.booleans(), st.data())
def test_subsets_are_nested_distinct_and_of_their_size(labels, seed, balanced, data):
    labels = torch.tensor(labels)
    large = data.draw(st.integers(1, len(labels)))
    small = data.draw(st.integers(1, large))
    chosen = [subset_indices(labels, size, seed, balanced).tolist() for size in (small, large)]
    assert [len(set(part)) for part in chosen] == [small, large]
    assert set(chosen[0]) <= set(chosen[1]) <= set(range(len(labels)))
    assert all(part == sorted(part) for part in chosen)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 3), st.data())
def test_a_balanced_subset_differs_by_one_at_most_among_classes_that_have_enough(labels, seed, data):
    labels = torch.tensor(labels)
    size = data.draw(st.integers(1, len(labels)))
    there = torch.bincount(labels, minlength=5)
    taken = torch.bincount(labels[subset_indices(labels, size, seed, balanced=True)], minlength=5)
    unfinished = taken[taken < there]
    if len(unfinished):
        assert taken.max() - unfinished.min() <= 1


def test_a_subset_of_classes_holds_only_these():
    labels = torch.arange(100) % 10
    chosen = labels[subset_indices(labels, None, seed=0, classes=[1, 7])]
    assert torch.bincount(chosen, minlength=10).tolist() == [0, 10, 0, 0, 0, 0, 0, 10, 0, 0]
    with pytest.raises(UserError, match="subset size is 21; allowed: 1 to 20, the training images of classes 1, 7"):
        subset_indices(labels, 21, seed=0, classes=[7, 1])
    for size in (0, -1, 101):
        with pytest.raises(UserError, match=f"subset size is {size}; allowed: 1 to 100"):
            subset_indices(labels, size, seed=0)


def test_subsets_depend_on_the_seed_and_are_the_same_on_every_machine():
    labels = torch.arange(50_000) % 10
    assert subset_indices(labels, 5, seed=1).tolist() == GOLDEN_PLAIN
    assert subset_indices(labels, 5, seed=2).tolist() != GOLDEN_PLAIN
    held = make_dataset(labels % 3).hold_out(5_000)
    assert hashlib.sha256(bytes(held.test.images[:, 0, 0, 0])).hexdigest() == GOLDEN_HOLDOUT


def test_take_records_what_was_taken():
    dataset = make_dataset([0, 1, 2] * 20)
    assert dataset.subset is None
    taken = dataset.take(12, seed=5, balanced=True, classes=[2, 0])
    assert torch.bincount(taken.train.labels).tolist() == [6, 0, 6]
    assert taken.subset == {"size": 12, "seed": 5, "balanced": True, "classes": [0, 2]}
    assert taken.sha256 == dataset.sha256 and taken.classes == dataset.classes
    assert dataset.take(7).subset == {"size": 7, "seed": 0, "balanced": False, "classes": None}
    with pytest.raises(UserError, match="classes has 3; allowed: 0 to 2"):
        dataset.take(classes=[0, 3])


def test_classes_restrict_the_test_split_too_and_sizes_do_not():
    dataset = make_dataset([0, 1, 2] * 20)
    assert dataset.take(12, balanced=True).test is dataset.test
    taken = dataset.take(classes=[2, 0])
    kept = dataset.test.labels != 1
    assert len(dataset.test) > len(taken.test) > 0
    assert torch.equal(taken.test.labels, dataset.test.labels[kept])
    assert torch.equal(taken.test.images, dataset.test.images[kept])
    with pytest.raises(UserError, match=r"classes is \[2\], which leaves no test images"):
        dataset.take(classes=[2])


def test_a_holdout_divides_the_training_images_by_class_and_leaves_the_rest_in_order():
    dataset = make_dataset([0, 1, 2] * 30)
    held = dataset.hold_out(31)
    assert held.holdout == 31 and dataset.holdout == 0 and held.sha256 == dataset.sha256
    assert sorted(torch.bincount(held.test.labels).tolist()) == [10, 10, 11]
    places = [split.images[:, 0, 0, 0].tolist() for split in (held.train, held.test)]
    assert sorted(places[0] + places[1]) == list(range(90))
    assert places[0] == sorted(places[0]) and places[1] == sorted(places[1])
    assert all(label == place % 3 for place, label in zip(places[1], held.test.labels.tolist(), strict=True))


def test_a_holdout_is_always_the_same_slice_and_a_smaller_one_lies_within_it():
    slices = [
        set(make_dataset([0, 1, 2] * 30).hold_out(count).test.images[:, 0, 0, 0].tolist()) for count in (30, 30, 9)
    ]
    assert slices[0] == slices[1] > slices[2]


@pytest.mark.parametrize("count", [-1, 0, 90, 91])
def test_a_holdout_must_leave_images_on_both_sides(count):
    with pytest.raises(UserError, match=f"holdout is {count}; allowed: 1 to 89"):
        make_dataset([0, 1, 2] * 30).hold_out(count)


def test_a_validation_split_moves_along_and_stays_where_images_are_held_out():
    whole = make_dataset([0, 1, 2] * 20)
    dataset = dataclasses.replace(whole, val=Split(whole.train.images[:5], torch.tensor([0, 1, -1, 2, 0])))
    assert whole.to("meta").val is None and dataset.to("meta").val.device.type == "meta"
    assert dataset.hold_out(9).val is dataset.val and dataset.take(7).val is dataset.val
    assert dataset.val.labeled.tolist() == [True, True, False, True, True]
    taken = dataset.take(classes=[1, 0])
    assert taken.val.images[:, 0, 0, 0].tolist() == [0, 1, 4] and taken.val.labels.tolist() == [0, 1, 0]
    unlabeled = dataclasses.replace(dataset, test=Split(whole.train.images[:2], torch.tensor([-1, -1])))
    assert unlabeled.take(classes=[0]).test is unlabeled.test
    with pytest.raises(UserError, match=r"classes is \[1\], which leaves no val images; allowed: classes that it"):
        dataclasses.replace(dataset, val=dataset.val.subset(torch.tensor([0, 2]))).take(classes=[1])
    facts = json.loads(json.dumps(describe(dataset)))
    assert facts["val_size"] == 5 and facts["val_counts"] == [2, 1, 1]
    assert describe(whole)["val_size"] is describe(whole)["val_counts"] is None


def test_labels_that_name_no_class_are_refused():
    dataset = make_dataset([0, 1, 2])
    images = dataset.train.images
    unlabeled = Split(images, torch.full((3,), -1))
    assert not dataclasses.replace(dataset, test=unlabeled, val=unlabeled).val.labeled.any()
    assert describe(dataclasses.replace(dataset, test=unlabeled))["test_counts"] == [0, 0, 0]
    with pytest.raises(UserError, match=r"the train labels are -1 to -1 of 3 classes; allowed: 0 to 2$"):
        dataclasses.replace(dataset, train=unlabeled)
    for name in ("train", "test", "val"):
        with pytest.raises(UserError, match=f"the {name} labels are 0 to 3 of 3 classes; allowed: (0|-1) to 2"):
            dataclasses.replace(dataset, **{name: Split(images, torch.tensor([3, 0, 1]))})
    with pytest.raises(UserError, match=r"^images are of type ndarray; allowed: a tensor"):
        Split(images.numpy(), dataset.train.labels)
    with pytest.raises(UserError, match=r"^labels are -2 to 0; allowed: 0 or more, and -1 for an unlabeled image"):
        Split(images, torch.tensor([-2, 0, -1]))


def test_a_dataset_may_have_test_images_alone():
    whole = make_dataset([0, 1, 2])
    dataset = dataclasses.replace(whole, train=whole.train.subset(torch.arange(0)))
    facts = describe(dataset)
    assert (facts["train_size"], facts["test_size"], facts["train_counts"]) == (0, 2, [0, 0, 0])
    assert facts["mean"] == list(dataset.mean) and len(dataset.to("cpu").train) == 0
    refused = "has test images only; allowed: a set with some; a saved run is evaluated on this one: fastcifar eval"
    for train in (lambda: dataset.hold_out(1), lambda: dataset.take(1), lambda: Trainer(Recipe(), dataset, "cpu")):
        with pytest.raises(UserError, match=refused):
            train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": make_dataset([0]).train.subset(torch.arange(0))}, "the test split holds no images; allowed: one"),
        ({"val": make_dataset([0]).train.to("meta")}, "the val images are on meta; allowed: cpu, as the training im"),
        ({"test": wide_split()}, "the test images are of 4 x 6; allowed: 4 x 4, as the training images"),
        ({"test": torch.zeros(3)}, "test is of type Tensor; allowed: a Split"),
        ({"classes": 5}, "classes is 5; allowed: a list of names, one or more"),
        ({"classes": ()}, r"classes is \(\); allowed: a list of names, one or more"),
        ({"std": (1.0, 0.0, 1.0)}, r"std is \(1.0, 0.0, 1.0\); allowed: three numbers above 0, of red, green and blue"),
        ({"std": (1.0, float("nan"), 1.0)}, "std is .*; allowed: three numbers above 0"),
        ({"std": (1.0, float("inf"), 1.0)}, "std is .*; allowed: three numbers above 0"),
        ({"mean": (1.0, float("nan"), 1.0)}, "mean is .*; allowed: three numbers, of red"),
        ({"mean": (True, 1.0, 1.0)}, "mean is .*; allowed: three numbers, of red"),
        ({"mean": (1.0, 1.0)}, "mean is .*; allowed: three numbers, of red"),
        ({"holdout": True}, "holdout is True; allowed: a whole number"),
        ({"holdout": -1}, "holdout is -1; allowed: 0 or more"),
    ],
    ids=str,
)
def test_a_dataset_that_does_not_fit_itself_is_refused(change, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        dataclasses.replace(make_dataset([0, 1, 2]), **change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lay",
    [
        lambda images: images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),  # channels first in memory
        lambda images: images.repeat_interleave(2, 0)[::2],
        lambda images: images.repeat(1, 1, 2, 1)[:, :, : images.shape[2]],
        lambda images: images[:1].expand(len(images), -1, -1, -1),
    ],
    ids=["permuted", "every other", "cut out", "expanded"],
)
def test_images_are_read_the_same_however_they_lie_in_memory(lay):
    images = torch.randint(256, (8, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    laid = lay(images)
    assert not laid.is_contiguous()
    labels = torch.arange(16).remainder(3)[::2]
    split, plain = Split(laid, labels), Split(laid.clone(memory_format=torch.contiguous_format), labels.clone())
    assert torch.equal(split.images, laid) and split.images.is_contiguous() and split.labels.is_contiguous()
    batches, expected = (list(Loader(each, 4, seed=1, augment=Augment(crop=1))) for each in (split, plain))
    assert all(torch.equal(a, b) for pair in zip(batches, expected, strict=True) for a, b in zip(*pair, strict=True))


def test_a_split_that_lies_in_order_is_not_copied():
    split = make_dataset([0, 1, 2]).train
    again = Split(split.images[1:], split.labels[1:])
    assert again.images.data_ptr() == split.images[1:].data_ptr() and again.label_range == (1, 2)
    assert split.to("cpu").images.data_ptr() == split.images.data_ptr()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_datasets_are_copied_and_pickled(make):
    dataset = make_dataset([0, 1, 2] * 3).hold_out(3).take(4)
    made = make(dataset)
    assert describe(made) == describe(dataset) and fingerprint(made.train) == fingerprint(dataset.train)
    assert made.test.label_range == dataset.test.label_range and isinstance(made, Dataset)


NUMPY = {"int": np.int64, "array": np.array, "tensor": torch.tensor}


@pytest.mark.parametrize("number", NUMPY.values(), ids=NUMPY)
def test_numbers_of_numpy_and_torch_are_as_good_as_pythons(number):
    dataset = make_dataset([0, 1, 2] * 10)
    taken = dataset.take(number(6), seed=number(3), balanced=np.bool_(True), classes=[number(0), number(1)])
    assert taken.subset == dataset.take(6, seed=3, balanced=True, classes=[0, 1]).subset
    assert json.loads(json.dumps(describe(taken))) == describe(taken)
    assert taken.hold_out(number(2)).holdout == 2 and type(taken.hold_out(number(2)).holdout) is int
    assert taken.take(classes=np.array([0, 1])).subset["classes"] == [0, 1]
    facts = {
        "mean": np.array([1, 2, 3.5]),
        "std": torch.ones(3),
        "holdout": number(2),
        "classes": np.array(["a", "b", "c"]),
    }
    made = dataclasses.replace(dataset, **facts)
    assert (made.mean, made.std, made.holdout, made.classes) == ((1.0, 2.0, 3.5), (1.0,) * 3, 2, ("a", "b", "c"))
    assert {type(each) for each in (*made.mean, *made.std, *made.classes)} == {float, str}
    assert dataset.train.subset(np.array([2, 0])).labels.tolist() == [2, 0]


@pytest.mark.parametrize("wrong", [True, np.bool_(True), 2.0, np.float32(2), float("nan"), "2", None, [2]], ids=repr)
def test_what_is_no_whole_number_is_refused(wrong):
    dataset = make_dataset([0, 1, 2] * 10)
    calls = [
        lambda: dataset.hold_out(wrong),
        lambda: dataset.take(5, seed=wrong),
        lambda: subset_indices(dataset.train.labels, 5, wrong),
        lambda: dataset.take(classes=[0, wrong]),
        lambda: load_dataset("synthetic", holdout=wrong),
        lambda: Loader(dataset.train, wrong),
        lambda: Loader(dataset.train, 4, seed=wrong),
    ]
    for call in calls + [lambda: dataset.take(wrong)] * (wrong is not None):
        with pytest.raises(UserError, match=r"allowed: (a )?whole number"):
            call()


@pytest.mark.parametrize("device", ["cuda", "cuda:9", "cuda:x", "mps", "nowhere", 1.5, None])
def test_a_device_that_is_not_there_is_refused_before_the_work(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("fastcifar.data.synthetic.make_synthetic", None)  # nothing is loaded
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    dataset = make_dataset([0, 1, 2])
    for call in (
        lambda: load_dataset("synthetic", device=device),
        *(partial(each.to, device) for each in (dataset, dataset.train)),
    ):
        with pytest.raises(
            UserError, match=f"^device is {device!r}(; allowed: auto, cpu, cuda|, but torch finds no CUDA)"
        ):
            call()


def test_auto_is_the_cpu_where_there_is_no_gpu_but_apples(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cpu")


def test_the_repr_of_a_dataset_is_a_line():
    dataset = make_dataset([0, 1, 2])
    assert repr(dataset.train) == "Split(3 images of 4 x 4, on cpu)"
    assert repr(dataset) == (
        "Dataset('synthetic': 3 images of 4 x 4 (training), 2 images of 4 x 4 (test), 3 classes, on cpu)"
    )
    assert "2 images of 4 x 4 (validation)" in repr(dataclasses.replace(dataset, val=dataset.test))


def test_a_fingerprint_is_of_every_split_and_of_labels_that_a_byte_does_not_hold():
    split, other = make_dataset([0, 1, 2]).train, make_dataset([0, 1, 1]).train
    bytes_of = b"".join(bytes(part.numpy().tobytes()) for part in (split.images, split.labels.to(torch.uint8)))
    assert fingerprint(split, split) == hashlib.sha256(bytes_of * 2).hexdigest()
    wide = [Split(split.images, torch.tensor([0, 1, last])) for last in (-1, 255, 256, 0)]
    found = [fingerprint(split, third) for third in (split, other, *wide)]
    found += [fingerprint(split, split, third) for third in (split, other, *wide)]
    assert len(set(found)) == len(found)


def test_a_holdout_is_made_once():
    with pytest.raises(UserError, match="holdout is 3, but 9 images are held out already; allowed: once"):
        make_dataset([0, 1, 2] * 30).hold_out(9).hold_out(3)


def test_describe_counts_and_measures_and_is_ready_for_json():
    labels = torch.tensor([0, 1, 1, 2])
    images = torch.randint(256, (4, 5, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    test = Split(images[:2], labels[:2])
    dataset = dataclasses.replace(make_dataset([0, 1]), train=Split(images, labels), test=test)
    facts = json.loads(json.dumps(describe(dataset)))
    assert facts["train_counts"] == [1, 2, 1] and facts["test_counts"] == [1, 1, 0]
    assert (facts["train_size"], facts["test_size"], facts["image_shape"]) == (4, 2, [5, 5, 3])
    assert facts["mean"] == pytest.approx(images.double().mean((0, 1, 2)).tolist())
    assert facts["std"] == pytest.approx(images.double().std((0, 1, 2), correction=0).tolist())
    assert (facts["name"], facts["source"], facts["sha256"]) == ("synthetic", "here", "0" * 64)
    assert facts["classes"] == ["a", "b", "c"] and facts["holdout"] == 0 and facts["subset"] is None


def test_the_synthetic_set_is_balanced_and_says_its_name():
    dataset = load_dataset("synthetic", holdout=1_000)
    facts = describe(dataset)
    assert facts["name"] == "synthetic" and "synthetic" not in load_dataset("synthetic").classes
    assert facts["train_counts"] == [900] * 10 and facts["test_counts"] == [100] * 10


def test_the_synthetic_set_is_the_same_on_every_machine():
    dataset = load_dataset("synthetic")
    assert dataset.sha256 == GOLDEN_SYNTHETIC
    assert dataset.mean == pytest.approx(describe(dataset)["mean"])


def test_the_synthetic_set_can_be_learned_but_not_by_its_mean_color():
    dataset = load_dataset("synthetic")

    def accuracy(features):
        train, test = (features(split.images.float()) for split in (dataset.train, dataset.test))
        targets = torch.nn.functional.one_hot(dataset.train.labels).float()
        scores = test @ torch.linalg.lstsq(train, targets).solution
        return (scores.argmax(1) == dataset.test.labels).float().mean().item()

    def blurred(images):
        means = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2), 4).flatten(1)
        return torch.cat([means, torch.ones(len(means), 1)], dim=1)

    assert accuracy(lambda images: images.mean((1, 2))) < 0.15
    assert 0.3 < accuracy(blurred) < 0.95
