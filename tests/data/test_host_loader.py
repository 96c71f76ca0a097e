"""Batches that a plain DataLoader makes image by image are those that the engine makes at once."""

import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.data import EpochPlan
from fastcifar.data.host_loader import EpochImages, HostLoader, Preprocess, changed, told_of_workers
from fastcifar.data.kept import HostStore, KeptSplit
from fastcifar.data.split import Split
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.kernels.augment import augment_reference
from fastcifar.recipes import Augment, LoadingConfig

MEAN, STD = (125.0, 120.0, 110.0), (62.0, 60.0, 65.5)
AUGMENT = Augment(crop=4, flip="random", cutout=8)
BATCH = 8


def loader(split, batch=BATCH, augment=AUGMENT, **config):
    return HostLoader(split, LoadingConfig("host", **config), augment, batch, MEAN, STD)


def batches(loader, plan, starts=None, epoch=0, seed=0, size=BATCH):
    """The batches of an epoch that begin at `starts`, all by default."""
    starts = range(0, len(plan), size) if starts is None else starts
    spans = [(start, min(start + size, len(plan))) for start in starts]
    loader.begin(plan, spans, epoch, seed)
    made = []
    for start, stop in spans:
        loader.next()
        made.append(loader.images[: stop - start].clone())
    with pytest.raises(IndexError, match="no more batches"):
        loader.next()
    loader.end()
    return made


@st.composite
def cases(draw):
    side, crop = draw(st.integers(2, 12)), draw(st.integers(0, 11))
    cut = draw(st.integers(0, side))
    augment = Augment(crop=min(crop, side - 1), flip=draw(st.sampled_from(["none", "random"])), cutout=cut)
    return side, augment, draw(st.integers(1, 6)), draw(st.integers(0, 2**31))


@settings(max_examples=40)
@given(cases(), st.sampled_from(["visit", "host", "device"]))
def test_the_same_choices_make_the_images_of_the_kernels_reference(case, preprocess):
    side, augment, count, seed = case
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=random)
    plan = EpochPlan.draw(count, augment, 1, seed, image_size=side)
    split = Split(images, torch.zeros(count, dtype=torch.int64))
    made = loader(split, augment=augment, workers=0, random="epoch", preprocess=preprocess)
    made = torch.cat(batches(made, plan, epoch=1, seed=seed))
    right = augment_reference(images, plan.indices, plan.offsets, plan.flips, plan.cutouts, mean=MEAN, std=STD)
    torch.testing.assert_close(made, right, rtol=0, atol=1e-6)


def test_a_plan_may_be_of_any_choices():
    """At the corners of the border, mirrored, with a cutout that is no square."""
    images = torch.randint(256, (4, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([[-3, -3], [-3, 3], [3, -3], [3, 3]], dtype=torch.int32)
    flips, cutouts = torch.tensor([True, False, True, False]), torch.tensor([[0, 1, 2, 3]] * 4, dtype=torch.int32)
    right = augment_reference(images, torch.arange(4), offsets, flips, cutouts, mean=MEAN, std=STD)
    prepared = Preprocess(3, MEAN, STD)(images)
    for row, ((top, left), flip) in enumerate(zip(offsets.tolist(), flips.tolist(), strict=True)):
        made = changed(prepared[row], 6, (top + 3, left + 3, flip, (0, 1, 2, 3)))
        torch.testing.assert_close(made, right[row], rtol=0, atol=1e-6)
    assert prepared.isfinite().all() and (prepared[:, :, 3:9, 3:9] != 0).any()  # a cutout changes a copy


@pytest.fixture(scope="module")
def split():
    return make_synthetic(44, 10).train


@pytest.mark.parametrize("random", ["image", "epoch"])
def test_neither_workers_nor_preprocessing_nor_a_resume_change_a_batch(split, random):
    plan = EpochPlan.draw(44, AUGMENT, 3, 5)
    right = batches(loader(split, workers=0, random=random), plan, epoch=3, seed=5)
    assert [len(batch) for batch in right] == [8] * 5 + [4]
    for workers, preprocess in ((1, "visit"), (3, "host"), (0, "device")):
        found = batches(loader(split, workers=workers, random=random, preprocess=preprocess), plan, epoch=3, seed=5)
        assert all(map(torch.equal, found, right))
    later = batches(loader(split, workers=2, random=random), plan, range(24, 44, 8), epoch=3, seed=5)
    assert all(map(torch.equal, later, right[3:]))
    kept = KeptSplit(HostStore(split.images.roll(1, 0)), split.labels, np.roll(np.arange(44), -1))
    assert all(map(torch.equal, batches(loader(kept, workers=0, random=random), plan, epoch=3, seed=5), right))


def test_other_epochs_and_seeds_have_other_numbers_by_image(split):
    plan, host = EpochPlan.draw(44, AUGMENT, 0, 0), loader(split, workers=0)
    first, *others = [torch.cat(batches(host, plan, epoch=e, seed=s)) for e, s in ((0, 0), (1, 0), (0, 1))]
    assert torch.equal(first, torch.cat(batches(host, plan)))
    for other in others:
        same = (first == other).flatten(1).all(1).float().mean()
        assert same < 0.2  # the order is the plan's, here the same one


def choices(augment, count, seed, batch=32, side=10):
    """Choices of an epoch drawn image by image, as the tensors of a plan."""
    images = torch.zeros(1, 3, side + 2 * augment.crop, side + 2 * augment.crop)
    plan = EpochPlan.draw(count, augment, 0, 0, image_size=side)
    drawn = EpochImages(images, Preprocess(augment.crop, MEAN, STD), plan, augment, False, batch, (seed, 0))
    each = [drawn._draw(position) for position in range(count)]
    tops = np.array([top for top, *_ in each]), np.array([left for _, left, *_ in each])
    return tops, np.array([flip for *_, flip, _ in each]), [cutout for *_, cutout in each]


@pytest.mark.parametrize("seed", range(3))
def test_numbers_by_image_are_uniform_as_those_of_a_plan(seed):
    """Each place within five standard deviations of its share; two crops and two flips in a row are independent."""
    count = 6000
    places, flips, cutouts = choices(Augment(crop=1, flip="random", cutout=7), count, seed)
    corners = np.array(cutouts)
    assert (corners[:, 2:] == 7).all()

    def uniform(values, kinds):
        shares = np.bincount(values, minlength=kinds)
        assert len(shares) == kinds
        deviation = np.sqrt(count / kinds * (1 - 1 / kinds))
        assert np.abs(shares - count / kinds).max() < 5 * deviation

    uniform(3 * places[0] + places[1], 9)
    uniform(4 * corners[:, 0] + corners[:, 1], 16)
    uniform(flips.astype(int), 2)
    uniform(3 * places[0] + np.roll(places[0], 1), 9)
    uniform(2 * flips + np.roll(flips, 1), 4)
    starts = choices(Augment(crop=1, flip="random"), count, seed, batch=1)[0][0]  # each from a generator of its own
    uniform(starts, 3)
    uniform(3 * starts + np.roll(starts, 1), 9)


def test_the_processs_default_type_is_not_taken(split):
    plan, made = EpochPlan.draw(44, AUGMENT, 0, 0), []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            made += [torch.cat(batches(loader(split, workers=0, preprocess=how), plan)) for how in ("visit", "host")]
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(each.dtype == torch.float32 and torch.equal(each, made[0]) for each in made)


def test_what_is_off_is_not_drawn():
    places, flips, cutouts = choices(Augment(crop=0, flip="none"), 50, 0)
    assert not any(map(np.any, places)) and not flips.any() and set(cutouts) == {None}


def test_an_epoch_has_every_image_once(split):
    plan = EpochPlan.draw(44, Augment(crop=0, flip="none"), 2, 9)
    made = torch.cat(batches(loader(split, augment=Augment(crop=0, flip="none"), workers=2), plan, epoch=2, seed=9))
    assert torch.equal(made, Preprocess(0, MEAN, STD)(split.images[plan.indices]))
    assert sorted(plan.indices.tolist()) == list(range(44))


def test_workers_are_there_for_an_epoch_and_leave_the_processs_numbers_alone(split):
    state, plan = torch.get_rng_state(), EpochPlan.draw(44, AUGMENT, 0, 0)
    host = loader(split, workers=2, preprocess="host")
    assert not multiprocessing.active_children()
    for _ in range(2):
        host.begin(plan, [(0, 8), (8, 16)], 0, 0)
        host.next()
        assert len(multiprocessing.active_children()) == 2
    host.end()
    assert not multiprocessing.active_children() and host._prepared is None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dead_worker_is_told_in_a_line(split):
    host, plan = loader(split, workers=1), EpochPlan.draw(44, AUGMENT, 0, 0)
    said = r"^DataLoader worker .*; allowed: fewer loading\.workers, or 0, the main thread$"
    with pytest.raises(UserError, match=said), told_of_workers():
        host.begin(plan, [(start, start + 8) for start in range(0, 40, 8)], 0, 0)
        host.next()
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        for _ in range(4):
            host.next()
        pytest.fail("four batches without a worker")
    host.end()
    with pytest.raises(RuntimeError, match="another"), told_of_workers():
        raise RuntimeError("another")


def test_images_that_do_not_fit_are_refused_before_the_work(split, monkeypatch):
    need = 4 * 3 * 40 * 40 * 44
    for free in (need - 1, need, None):
        monkeypatch.setattr("fastcifar.data.host_loader.free_memory", lambda free=free: free)
        loader(split)
        if free == need - 1:
            said = r"^loading\.preprocess is device, which takes 0\.8 MiB of .*; allowed: visit$"
            with pytest.raises(UserError, match=said):
                loader(split, preprocess="device")
        else:
            loader(split, preprocess="device")


def test_a_process_that_may_have_no_workers_is_refused_them(split, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(UserError, match=r"^loading\.workers is 2 in a process .*; allowed: 0, or one run at a time$"):
        loader(split)
    loader(split, workers=0)


def test_an_epoch_can_be_handed_to_a_process_that_is_not_forked(split):
    plan = EpochPlan.draw(44, AUGMENT, 0, 0)
    for by_epoch in (False, True):
        images = EpochImages(split.images, Preprocess(4, MEAN, STD), plan, AUGMENT, by_epoch, 8, (0, 0))
        again = pickle.loads(pickle.dumps(images))
        assert all(torch.equal(images[place], again[place]) for place in range(10))
