"""A training whose images lie in host memory or on disk is the one whose images lie on the device, to the last bit."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from fastcifar.data import EpochPlan, Loader
from fastcifar.data.feed import Feed
from fastcifar.data.kept import FlatFile, HostStore, KeptSplit
from fastcifar.data.split import Split
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models.davidnet import DavidNet
from fastcifar.recipes import Augment, EvaluateConfig
from fastcifar.training import Listener, Trainer, evaluate, train
from tests.small import DAVIDNET, EVERYTHING, MLP

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
    feed, plan = Feed(split, 10), EpochPlan.draw(100, Augment(), 0, 0)
    for epoch in range(2):
        started.clear()
        feed.begin(plan.indices, ((start, min(start + 10, 95)) for start in range(0, 95, 10)), epoch)
        for number in range(4 if epoch == 0 else 10):
            feed.next()
            rows = plan.indices[number * 10 : min(number * 10 + 10, 95)]
            assert torch.equal(feed.images[: len(rows)], split.images[rows])
        assert 4 <= len(started) <= 10  # batches that are not read yet are dropped with the epoch
    assert started == [rows.tolist() for rows in plan.indices[:95].split(10)]
    with pytest.raises(IndexError, match="no more batches"):
        feed.next()
    assert not any(thread is threading.main_thread() for thread in feed._pool._threads)


def test_train_takes_a_set_by_name_to_where_its_images_are_to_lie(data):
    runs = [train(MLP, "synthetic", resident=place, device="cpu", epochs=0.1) for place in ("host", "auto")]
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
