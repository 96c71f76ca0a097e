"""A training whose images lie in host memory or on disk is the one whose images lie on the device, to the last bit."""

import copy
import dataclasses
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar.data import EpochPlan, Loader
from fastcifar.data.feed import Feed
from fastcifar.data.kept import FlatFile, HostStore, KeptSplit
from fastcifar.data.split import Split
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.whitening import PatchWhitening
from fastcifar.recipes import Augment, EvaluateConfig
from fastcifar.training import Listener, Trainer, evaluate, train
from fastcifar.training.rehearse import warm_up_the_rest
from tests.small import BARE, DAVIDNET, EVERYTHING, MLP

PLACES = ("host", "disk")
RECIPES = {
    "plain": DAVIDNET,
    "everything": EVERYTHING,
    "last batch in part": dataclasses.replace(MLP, drop_last=False, batch_size=24, epochs=2.5),
}


@pytest.fixture(scope="module")
def data():
    data = make_synthetic(100, 20)
    return dataclasses.replace(data, val=Split(data.train.images[:24].flip(2), data.train.labels[:24]))


@pytest.fixture
def kept(data, tmp_path):
    """Return a function of a place that returns the data, its images there; each split has one image more in front in
    the file, and in memory an odd order."""

    def keep(place):
        def of(split):
            if place == "host":
                order = np.roll(np.arange(len(split)), 7)
                return KeptSplit(HostStore(split.images.roll(-7, 0)), split.labels, order)
            path = tmp_path / f"{len(split)}.images"
            path.write_bytes(b"123" + split.images.numpy().tobytes())
            return KeptSplit(FlatFile(path, 3, tuple(split.images.shape)), split.labels)

        return dataclasses.replace(data, **{name: of(getattr(data, name)) for name in ("train", "val", "test")})

    return keep


def assert_same(run, other):
    assert run.state.keys() == other.state.keys()
    assert all(torch.equal(run.state[name], other.state[name]) for name in run.state)
    assert torch.equal(run.tta_logits, other.tta_logits) and torch.equal(run.plain_logits, other.plain_logits)
    for one, two in zip(run.rows, other.rows, strict=True):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(two, seconds=0)


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_to_the_same_weights(data, kept, name):
    recipe = RECIPES[name]
    resident = Trainer(recipe, data, "cpu").run(3, evaluate_at_start=True)
    assert (resident.record.resident, resident.record.waited_seconds) == ("device", None)
    for place in PLACES:
        trainer = Trainer(recipe, kept(place), "cpu")
        for seed in (4, 3) if name == "last batch in part" else (3,):  # in the same buffers
            run = trainer.run(seed, evaluate_at_start=True)
        assert_same(run, resident)
        assert run.record.resident == place and 0 < run.record.waited_seconds < run.record.train_seconds


@pytest.mark.parametrize("place", PLACES)
def test_a_subset_is_the_same_images_and_copies_none(data, kept, place):
    def changed(data):
        return data.hold_out(20).take(64, seed=1, balanced=True)

    smaller = changed(kept(place))
    assert smaller.train.store.shape[0] == smaller.test.store.shape[0] == 100
    assert_same(Trainer(MLP, smaller, "cpu").run(0), Trainer(MLP, changed(data), "cpu").run(0))


@pytest.mark.parametrize("step", [1, 4, 5, 6, 12])
def test_a_training_goes_on_within_an_epoch_and_between_two(data, kept, step):
    """From disk to the device and back."""
    augment = dataclasses.replace(EVERYTHING.augment, early_crops=())
    recipe = dataclasses.replace(MLP, drop_last=False, augment=augment, select=EVERYTHING.select)
    whole, states = Trainer(recipe, data, "cpu").run(0), []

    class Stopped(Exception):
        pass

    def save(now, total):
        if now == step:
            states.append(trainer.state.state_dict())
            raise Stopped

    for first, then in ((data, kept("disk")), (kept("host"), data), (kept("disk"), kept("host"))):
        trainer = Trainer(recipe, first, "cpu")
        with pytest.raises(Stopped):
            trainer.run(0, listeners=[Listener(on_step=save)])
        run = Trainer(recipe, then, "cpu").run(resume=states.pop())
        assert_same(run, whole)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", [EvaluateConfig(tta="none"), EvaluateConfig(tta="flip-crop", tta_share=0.4)])
def test_it_is_evaluated_to_the_same_logits(data, kept, place, how):
    model, how = DavidNet(DAVIDNET.network, 10), dataclasses.replace(how, batch_size=7)
    results = [evaluate(model, each.test, how) for each in (data, kept(place))]
    assert torch.equal(results[0].logits, results[1].logits) and results[0].loss == results[1].loss


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_a_loader_gives_the_same_batches(data, kept, place, drop_last):
    augment = Augment(crop=2, flip="alternating", cutout=3)
    loaders = [Loader(each.train, 32, augment, drop_last=drop_last) for each in (data, kept(place))]
    for _ in range(2):
        for one, two in zip(*loaders, strict=True):
            assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_batches_are_read_ahead_in_the_order_of_the_plan_and_a_new_epoch_drops_the_others(kept):
    split, started = kept("disk").train, []
    read = split.store.read
    split.store.read = lambda rows, out: (started.append(rows.tolist()), read(rows, out))
    feed, read_now = Feed(split, 10), []
    for epoch in range(2):
        plan = EpochPlan.draw(100, Augment(), epoch, 0)
        feed.begin(plan.indices, ((start, min(start + 10, 95)) for start in range(0, 95, 10)), epoch)
        for number in range(4 if epoch == 0 else 10):
            feed.next()
            rows = plan.indices[number * 10 : min(number * 10 + 10, 95)]
            assert torch.equal(feed.images[: len(rows)], split.images[rows])
        batches = [rows.tolist() for rows in plan.indices[:95].split(10)]
        read_now = [rows for rows in started if rows in batches]
        assert 4 <= len(read_now) <= 10
        assert len(started) < 20  # batches that are not read yet are dropped with the epoch
    assert read_now == batches
    with pytest.raises(IndexError, match="no more batches"):
        feed.next()
    assert not any(thread is threading.main_thread() for thread in feed._pool._threads)


def test_train_takes_a_set_by_name_to_where_its_images_are_to_lie(data):
    how = {"device": "cpu", "epochs": 0.1, "optimizer.lr": 0.01}
    runs = [train(MLP, "synthetic", resident=place, **how) for place in ("host", "auto")]
    assert [run.record.resident for run in runs] == ["host", "device"]
    assert_same(*runs)
    with pytest.raises(UserError, match="resident is disk, but synthetic is read into memory"):
        train(MLP, "synthetic", resident="disk", device="cpu")


def test_what_reading_raises_ends_the_training(kept):
    data = kept("disk")
    trainer = Trainer(MLP, data, "cpu")
    with data.train.store.path.open("r+b") as file:
        file.truncate(20000)
    with pytest.raises(UserError, match="ends before its last image"):
        trainer.run(0)
    assert not trainer.state.feed._pending


_INDICES = {
    "in order": [0, 3, 19],
    "negative": [-1, -20, 5],
    "repeated": [4, 4, -16],
    "none": torch.empty(0, dtype=torch.int64),
    "bool": torch.arange(20) % 3 == 0,
    "narrow": torch.tensor([1, -2], dtype=torch.int32),
}
_NO_INDICES = {
    "past the end": [0, 20],
    "before": [-21],
    "a short mask": torch.ones(19, dtype=torch.bool),
    "real": [0.5],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*_INDICES, *_NO_INDICES])
def test_indices_name_the_images_that_they_name_in_a_resident_split(data, kept, place, name):
    split, resident = kept(place).test, data.test
    indices = torch.as_tensor((_INDICES | _NO_INDICES)[name])
    if name in _NO_INDICES:
        for ask in (resident.subset, split.subset, split.subset(torch.arange(20)).subset, split.at):
            with pytest.raises(IndexError):
                ask(indices)
        return
    right = resident.subset(indices)
    for chosen in (split.subset(indices), split.subset(torch.arange(20)).subset(indices)):
        assert torch.equal(chosen.images, right.images) and torch.equal(chosen.labels, right.labels)
    images, places = split.at(indices)
    assert torch.equal(images[places], right.images)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
@pytest.mark.parametrize("place", PLACES)
def test_it_is_copied_and_pickled(data, kept, place, again):
    copied = again(kept(place))
    assert torch.equal(copied.train.images, data.train.images) and torch.equal(copied.test.labels, data.test.labels)


def test_a_read_that_the_system_breaks_off_is_gone_on_with(data, kept, monkeypatch):
    split, preadv = kept("disk").train, os.preadv

    def short(file, buffers, place):
        return preadv(file, [buffers[0][:1000], *[buffers[0][1000:1500]] * (len(buffers) > 2)], place)

    monkeypatch.setattr(os, "preadv", short)
    assert torch.equal(split.images, data.train.images)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(UserError, match="ends before its last image"):
        split.read(np.arange(3))


def test_an_interrupted_wait_for_a_batch_leaves_no_thread_at_work(data):
    """After Ctrl-C the batch's thread is still waited for: it writes to memory that the next epoch reads into."""
    going, began = threading.Event(), threading.Event()

    class Slow(HostStore):
        def read(self, rows, out):
            began.set()
            assert going.wait(10)
            super().read(rows, out)

    feed = Feed(KeptSplit(Slow(data.train.images), data.train.labels), 10)
    feed.begin(torch.arange(100), [(0, 10)])
    assert began.wait(10)
    reading = feed._pending[0][1]
    result, reading.result = reading.result, lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        feed.next()
    reading.result = result
    threading.Timer(0.05, going.set).start()
    feed.end()
    assert reading.done()


def test_a_feed_takes_no_more_memory_than_the_images():
    data = make_synthetic(12, 4).train
    split = KeptSplit(HostStore(data.images), data.labels)
    assert Feed(split, 10_000).images.shape[0] == 12
    assert [len(images) for images, _ in Loader(split, 10_000, drop_last=False)] == [12]


class _Counted(HostStore):
    """Images in host memory that count how many are read."""

    def __init__(self, images):
        super().__init__(images)
        self.reads = 0

    def read(self, rows, out):
        self.reads += len(rows)
        super().read(rows, out)


@pytest.mark.parametrize(("own", "fits"), [(nn.Flatten, 0), (lambda: PatchWhitening(channels=3), 100)])
def test_images_are_read_before_the_first_step_for_a_whitening_alone(data, own, fits):
    def model(classes):
        return nn.Sequential(own(), nn.Flatten(), nn.LazyLinear(classes))

    store = _Counted(data.train.images)
    recipe = dataclasses.replace(BARE, epochs=1, batch_size=100)
    train(recipe, dataclasses.replace(data, train=KeptSplit(store, data.train.labels)), model=model, device="cpu")
    assert store.reads == fits + 100


def test_a_split_without_labels_is_evaluated_once_at_the_end(data):
    store = _Counted(data.test.images)
    test = KeptSplit(store, torch.full_like(data.test.labels, -1))
    recipe = dataclasses.replace(BARE, epochs=3, evaluate=EvaluateConfig(tta="none"))
    run = Trainer(recipe, dataclasses.replace(data, test=test), "cpu").run()
    assert store.reads == 20 and run.tta_logits.shape == (20, 10)
    assert [row.test_accuracy for row in run.rows] == [None] * 3 and all(row.val_accuracy for row in run.rows)


def test_a_warm_up_takes_two_batches_of_a_split_that_is_not_on_the_device(data, kept, monkeypatch):
    """Of the shapes of a full batch and of the last one."""
    recipe = dataclasses.replace(BARE, evaluate=EvaluateConfig(batch_size=7))
    for each, count in ((data, 20), (kept("disk"), 13)):
        trainer, seen = Trainer(dataclasses.replace(recipe, batch_size=4), each, "cpu"), []
        monkeypatch.setattr("fastcifar.training.rehearse.evaluate", lambda _, split, how, seen=seen: seen.append(split))
        warm_up_the_rest(trainer)
        assert [len(split) for split in seen] == [count]


def test_a_dataset_lies_where_it_is_asked_to(data, kept):
    recipe = dataclasses.replace(BARE, epochs=1)
    runs = [train(recipe, data, device="cpu", resident=place, holdout=20) for place in ("auto", "host")]
    assert [run.record.resident for run in runs] == ["device", "host"]
    assert_same(*runs)
    disk = kept("disk")
    runs = [train(recipe, disk, device="cpu", resident=place) for place in ("auto", "disk", "host", "device")]
    assert [run.record.resident for run in runs] == ["disk", "disk", "host", "device"]
    with pytest.raises(UserError, match="resident is disk, but synthetic is read into memory"):
        train(recipe, data, device="cpu", resident="disk")
