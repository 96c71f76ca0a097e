"""drop_last, normalize and loss_scaling, a recipe's fields that change the engine's arithmetic."""

import dataclasses
import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastcifar.data import EpochPlan
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models.davidnet import DavidNet
from fastcifar.recipes import LossScalingConfig, NormalizeConfig, Recipe, SelectConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.training import Listener, Trainer, train
from fastcifar.training.rehearse import replay_on_noise, step_on_noise
from fastcifar.training.timeline import Timeline
from tests.small import BARE

RECIPE = dataclasses.replace(BARE, epochs=2, batch_size=32)


@pytest.fixture(scope="module")
def data():
    return make_synthetic(100, 20)


@settings(max_examples=100)
@given(images=st.integers(1, 300), batch=st.integers(1, 40), epochs=st.floats(0.1, 4), keep=st.sampled_from([1.0, 0.6]))
def test_without_drop_last_every_image_is_passed_once_in_each_whole_epoch(images, batch, epochs, keep):
    select = SelectConfig(keep=keep, from_epoch=1)
    if round(keep * images) < 1:
        return
    recipe = dataclasses.replace(RECIPE, drop_last=False, batch_size=batch, epochs=epochs, select=select)
    line = Timeline(recipe, images, 32)
    for epoch in line.epochs:
        visits = epoch.visits or images
        assert epoch.steps * batch - epoch.images < batch
        if epoch.number + 1 <= epochs:
            assert epoch.images == visits and epoch.steps == -(-visits // batch)
        assert (epoch.last is None) == (epoch.images % batch == 0)
        if epoch.last:
            start, stop = epoch.last.part
            assert (start % batch, stop) == (0, epoch.images) and 0 < stop - start < batch
            assert epoch.stage_of(epoch.end - 1) == epoch.last
        assert epoch.stage_of(epoch.first_step) == (epoch.last if epoch.steps == 1 and epoch.last else epoch.stage)
    assert sum(line.steps_by_stage().values()) == line.total_steps


def test_a_smaller_last_batch_is_a_step_for_its_own_mean_loss(data):
    """Plain gradient descent, by hand."""
    trainer = Trainer(dataclasses.replace(RECIPE, epochs=1, drop_last=False), data, "cpu")
    run = trainer.run(3)
    model, train_split = trainer.new_network(3), data.train
    plan = EpochPlan.draw(100, RECIPE.augment, 0, 3)
    pixels = (train_split.images[plan.indices].permute(0, 3, 1, 2) - torch.tensor(data.mean)[:, None, None]) / (
        torch.tensor(data.std)[:, None, None]
    )
    labels, total = train_split.labels[plan.indices], 0.0
    for start in range(0, 100, 32):
        part = slice(start, start + 32)
        loss = F.cross_entropy(model(pixels[part]), labels[part])
        total += loss.item() * len(labels[part])
        for parameter, grad in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            parameter.data -= 0.05 * grad
    assert run.record.steps == 4 and run.rows[0].images == 100
    assert run.rows[0].train_loss == pytest.approx(total / 100, rel=1e-5)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(run.state[name], expected, rtol=1e-4, atol=1e-6)


def test_without_drop_last_a_batch_may_be_larger_than_the_set_and_images_are_selected(data):
    few = train(dataclasses.replace(RECIPE, drop_last=False, batch_size=512), data)
    assert (few.record.steps, few.rows[-1].images) == (2, 200)
    chosen = train(dataclasses.replace(RECIPE, drop_last=False, select=SelectConfig(0.5, from_epoch=1)), data)
    assert (chosen.record.steps, chosen.rows[-1].images) == (4 + 2, 150)
    assert chosen.rows[-1].train_loss > 0


def test_every_stage_is_rehearsed_a_smaller_last_batch_too(data):
    recipe = dataclasses.replace(RECIPE, drop_last=False)
    trainer = Trainer(recipe, data, "cpu")
    stages = list(trainer.timeline.steps_by_stage())
    assert [stage.part for stage in stages] == [None, (96, 100)]
    sizes = []
    trainer.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for stage in stages:
        step_on_noise(trainer, stage)()
        replay_on_noise(trainer, stage)()
    assert sizes == [32, 32, 4, 4]
    replay_on_noise(trainer)()
    assert all(
        torch.equal(tensor, train(recipe, data, seed=3).state[name]) for name, tensor in trainer.run(3).state.items()
    )


def test_a_last_batch_of_one_image_is_refused_where_a_norm_knows_no_variance_of_it(data):
    recipe = Recipe(batch_size=32, drop_last=False, network=ResNet18Config(width=4, stem="imagenet"))
    said = "drop_last is false, which leaves 1 image for an epoch's last batch .*; allowed: true, or a batch_size that"
    with pytest.raises(UserError, match=said):
        Trainer(recipe, data.take(33))
    Trainer(recipe, data.take(34))
    Trainer(dataclasses.replace(recipe, network=ResNet18Config(width=4)), data.take(33))


class OwnNet(nn.Module):
    """Batch norm first, dropout, random numbers of its own and what cannot be copied."""

    def __init__(self, classes, lock=None):
        super().__init__()
        self.norm, self.conv, self.dropout = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Dropout()
        self.head, self.lock = nn.Linear(4, classes), lock

    def forward(self, x):
        x = self.dropout(self.conv(self.norm(x))).amax((2, 3))
        return self.head(x + torch.rand(()).to(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_last_batch_of_one_image_trains_where_norms_see_many_pixels(data, dtype):
    """And leaves the program's random numbers alone."""
    recipe, before = Recipe(batch_size=32, drop_last=False, epochs=1, dtype=dtype), torch.get_rng_state()
    for lock in (None, threading.Lock()):
        trainer = Trainer(recipe, data.take(33), model=lambda classes, lock=lock: OwnNet(classes, lock))
        assert torch.equal(torch.get_rng_state(), before)
    assert trainer.run().record.steps == 2


def test_a_last_batch_that_ghost_batches_do_not_divide_is_refused(data):
    recipe = Recipe(batch_size=64, drop_last=False, network=DavidNetConfig(widths=(4, 4, 4, 4), ghost_batch=32))
    with pytest.raises(
        UserError, match="drop_last is false, which leaves 36 images for an epoch's last batch; allowed"
    ):
        Trainer(recipe, data)
    Trainer(recipe, data.take(96))
    whole = dataclasses.replace(recipe, network=DavidNetConfig(widths=(4, 4, 4, 4), ghost_batch=0))
    with pytest.raises(UserError, match="drop_last is false, which leaves 36 images"):
        Trainer(whole, data, model=lambda classes: DavidNet(recipe.network, classes))


def test_images_are_normalized_as_the_recipe_says(data):
    batches = []
    given = NormalizeConfig(mean=(127.5, 100.0, 0.0), std=(255.0, 50.0, 1.0))
    for normalize in (given, NormalizeConfig(), NormalizeConfig(std=(63.75,) * 3)):
        trainer = Trainer(dataclasses.replace(RECIPE, epochs=0.1, normalize=normalize), data)
        trainer.model.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].clone()))
        record = trainer.run(0).record
        mean, std = normalize.mean or data.mean, normalize.std or data.std
        assert (record.dataset.mean, record.dataset.std) == (tuple(mean), tuple(std))
        assert (trainer.evaluated.mean, trainer.evaluated.std) == (tuple(mean), tuple(std))
    own = batches[1] * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    other = batches[0] * torch.tensor(given.std)[:, None, None] + torch.tensor(given.mean)[:, None, None]
    torch.testing.assert_close(own, other, rtol=0, atol=1e-3)
    torch.testing.assert_close(own.round(), own, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"mean": (1.0, 2.0)}, "normalize.mean is .* allowed: three numbers"),
        ({"std": (1.0,) * 4}, "normalize.std is .* allowed: three numbers"),
    ],
)
def test_a_normalization_that_is_none_is_refused(fields, refusal):
    with pytest.raises(UserError, match=refusal):
        NormalizeConfig(**fields)


HALF = dataclasses.replace(RECIPE, dtype="float16", optimizer=SGDConfig(lr=0.02, bias_lr_factor=1.0))


def test_scaled_gradients_train_as_plain_ones_do(data):
    plain = train(HALF, data, seed=3)
    scaled = train(
        dataclasses.replace(HALF, loss_scaling=LossScalingConfig(dynamic=True, initial=1024.0)), data, seed=3
    )
    for one, other in zip(plain.rows, scaled.rows, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=0.01)


def test_gradients_too_small_for_float16_train_only_where_they_are_scaled(data):
    """A loss of a hundred-thousandth of the usual has gradients that float16 rounds to 0, or nearly."""

    def tiny(logits, labels):
        return F.cross_entropy(logits, labels) * 1e-9

    recipe = dataclasses.replace(HALF, optimizer=SGDConfig(lr=1e7, momentum=0.0, weight_decay=0.0, bias_lr_factor=1.0))
    scaling = LossScalingConfig(dynamic=True, initial=2.0**30)
    results = {}
    for name, changed in (("plain", {}), ("scaled", {"loss_scaling": scaling}), ("wide", {"dtype": "float32"})):
        results[name] = train(dataclasses.replace(recipe, **changed), data, seed=3, loss=tiny)
    moved = {name: run.state["classifier.weight"] for name, run in results.items()}
    torch.testing.assert_close(moved["scaled"], moved["wide"], rtol=0.05, atol=0.005)
    assert (moved["plain"] - moved["wide"]).abs().max() > (moved["scaled"] - moved["wide"]).abs().max() * 3


def test_a_step_whose_gradients_are_not_finite_is_left_out_and_halves_the_scale(data):
    recipe = dataclasses.replace(
        HALF, loss_scaling=LossScalingConfig(dynamic=True, initial=2.0**40, growth_every=2), epochs=12
    )
    trainer, scales, weights = Trainer(recipe, data, "cpu"), [], []

    def note(*step):
        scales.append(trainer.state.loss_scale.scale)
        weights.append(trainer.state.flat.groups[0].weights.clone())

    trainer.run(3, listeners=[Listener(on_step=note)])
    changes = [after / before for before, after in itertools.pairwise(scales)]
    assert {0.5, 1.0, 2.0} == set(changes)
    for change, (before, after) in zip(changes, itertools.pairwise(weights), strict=True):
        assert torch.equal(before, after) == (change == 0.5)
    assert scales[0] == 2.0**40 / 32 / 2


def test_in_another_type_nothing_is_scaled(data):
    scaling = LossScalingConfig(dynamic=True)
    plain, scaled = train(RECIPE, data), train(dataclasses.replace(RECIPE, loss_scaling=scaling), data)
    assert all(torch.equal(plain.state[name], scaled.state[name]) for name in plain.state)
