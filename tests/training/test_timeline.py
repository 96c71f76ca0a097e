"""Each epoch of a training has its number of steps, and fixes its stage."""

import dataclasses
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.recipes import Augment, AverageConfig, EMAConfig, Recipe, SelectConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.training.timeline import Timeline

PLAIN = DavidNetConfig(ghost_batch=0)


def timeline(images=1000, size=32, frozen_from=None, **fields):
    return Timeline(Recipe(**{"batch_size": 10, "network": PLAIN, **fields}), images, size, frozen_from)


@settings(max_examples=200)
@given(hundredths=st.integers(1, 40_000), steps=st.integers(1, 400), rest=st.integers(0, 9))
def test_the_steps_are_the_epochs_times_those_of_one_rounded_up(hundredths, steps, rest):
    exact = Fraction(hundredths, 100)
    line = timeline(10 * steps + rest, epochs=float(exact))
    assert line.total_steps == math.ceil(exact * steps)
    assert len(line.epochs) == math.ceil(exact)
    assert [epoch.steps for epoch in line.epochs[:-1]] == [steps] * (len(line.epochs) - 1)
    assert [epoch.first_step for epoch in line.epochs] == [steps * number for number in range(len(line.epochs))]


def test_a_whole_number_of_epochs_may_be_written_either_way():
    assert timeline(epochs=3).epochs == timeline(epochs=3.0).epochs
    assert timeline(epochs=3.0).total_steps == timeline(epochs=3.0000000001).total_steps == 300


def test_an_epoch_of_less_than_a_step_is_a_step():
    assert timeline(epochs=1e-12).total_steps == 1


def test_early_epochs_are_those_that_begin_before_their_share():
    def sizes(epochs, *shares):
        line = timeline(epochs=epochs, augment=Augment(early_crops=tuple(zip((24, 28), shares, strict=False))))
        return [epoch.stage.size for epoch in line.epochs]

    assert sizes(4, 0.5) == [24, 24, 32, 32]
    assert sizes(5, 0.5) == [24, 24, 24, 32, 32]
    assert sizes(2.5, 0.8) == [24, 24, 32]
    assert sizes(3) == [32] * 3
    assert sizes(3, 1) == [24] * 3
    assert sizes(10, 0.2, 0.6) == [24] * 2 + [28] * 4 + [32] * 4
    assert sizes(3, 0.5, 0.6) == [24, 24, 32]
    for epochs, share in ((25, 0.28), (50, 0.14), (100, 0.07)):  # whose products are a little above 7
        assert sizes(epochs, share) == [24] * 7 + [32] * (epochs - 7)


def test_a_stage_is_one_size_and_one_set_of_trained_parameters():
    line = timeline(epochs=4.5, augment=Augment(early_crops=((24, 0.4),)), frozen_from={"bias": 1.5, "never": 9.0})
    stages = [(epoch.stage.size, sorted(epoch.stage.frozen)) for epoch in line.epochs]
    assert stages == [(24, []), (24, []), (32, ["bias"]), (32, ["bias"]), (32, ["bias"])]
    assert list(line.steps_by_stage().values()) == [200, 250]
    assert (line.steps_until_frozen("bias"), line.steps_until_frozen("never")) == (200, 450)


def test_early_epochs_take_steps_of_fewer_images():
    augment = Augment(early_crops=((24, 0.25), (28, 0.5)))

    def steps(*early_batches, **fields):
        line = timeline(epochs=4, augment=augment, early_batches=early_batches, **fields)
        assert [epoch.first_step for epoch in line.epochs] == [
            sum(epoch.steps for epoch in line.epochs[:number]) for number in range(4)
        ]
        assert all(epoch.images == epoch.steps * epoch.stage.batch for epoch in line.epochs if epoch.last is None)
        return [(epoch.stage.size, epoch.stage.batch, epoch.steps) for epoch in line.epochs], line

    whole = [(32, 10, 100)] * 2
    assert steps(4)[0] == [(24, 4, 250), (28, 10, 100), *whole]
    assert steps(4, 8)[0] == [(24, 4, 250), (28, 8, 125), *whole]
    assert steps(10)[0] == steps()[0] == [(24, 10, 100), (28, 10, 100), *whole]
    line = steps(4, 8)[1]
    assert (line.total_steps, line.steps_per_epoch) == (575, 250)
    assert (line.steps_before(0.5), line.steps_before(1.5)) == (125, 250 + 63)
    last = steps(3, drop_last=False)[1].epochs[0].last
    assert (last.part, last.images, last.batch) == ((999, 1000), 1, 3)


@pytest.mark.parametrize("batches", [(4, 8, 2), (20,)])
def test_early_batches_that_would_not_be_taken_are_refused(batches):
    with pytest.raises(UserError, match=r"early_batches is .*; allowed: up to 2, .* of up to batch_size, 10$"):
        timeline(augment=Augment(early_crops=((24, 0.25), (28, 0.5))), early_batches=batches)


def test_an_epoch_that_leaves_images_out_has_fewer_steps():
    line = timeline(epochs=3.5, select=SelectConfig(keep=0.75, from_epoch=1.5))
    assert [(epoch.visits, epoch.steps) for epoch in line.epochs] == [(None, 100), (None, 100), (750, 75), (750, 38)]
    assert [epoch.first_step for epoch in line.epochs] == [0, 100, 200, 275]
    assert line.total_steps == 313


def test_the_averaged_steps_are_the_last_counted_back_from_the_end():
    def averaged(**average):
        line = timeline(epochs=2.5, ema=EMAConfig(decay=0), average=AverageConfig(**average))
        return [step for step in range(line.total_steps + 1) if line.is_averaged(step)]

    assert averaged(epochs=0.2, every=5) == [235, 240, 245, 250]
    assert averaged(epochs=1.6, every=40) == [90 + 40 * count for count in range(1, 5)]
    assert averaged(epochs=99, every=100) == [50, 150, 250]
    assert averaged(epochs=0) == []


def test_steps_before_is_where_a_place_in_epochs_is():
    line = timeline(epochs=3.5, select=SelectConfig(keep=0.5, from_epoch=2))
    places = {0: 0, 0.5: 50, 1: 100, 2: 200, 2.1: 205, 3: 250, 3.5: 275, 4: 275}
    assert {place: line.steps_before(place) for place in places} == places


def test_what_does_not_fill_a_batch_or_fit_an_image_is_refused():
    with pytest.raises(UserError, match="batch_size is 10; allowed: up to the 9 training images"):
        timeline(9)
    with pytest.raises(
        UserError, match=r"augment.early_crops is \[\[24, 0.5\]\]; allowed: sides up to 16, that of the images"
    ):
        timeline(size=16, augment=Augment(early_crops=((24, 0.5),)))
    keep = SelectConfig(keep=0.009, from_epoch=1)
    with pytest.raises(UserError, match=r"select.keep is 0.009, which leaves 9 of the 1000 training images; allowed"):
        timeline(epochs=2, select=keep)
    assert timeline(epochs=1, select=keep).total_steps == 100


def test_images_that_an_epoch_selects_do_not_change_the_epochs_before():
    whole = timeline(epochs=5)
    selected = timeline(epochs=5, select=SelectConfig(keep=0.5, from_epoch=3))
    assert whole.epochs[:3] == selected.epochs[:3]
    assert dataclasses.replace(whole.epochs[3], images=500, visits=500, steps=50) == selected.epochs[3]
