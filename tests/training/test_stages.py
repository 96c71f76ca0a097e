"""Trainings whose epochs differ: in part, on smaller crops, on the hardest images, with parameters frozen on the way;
and the average of their last weights."""

import dataclasses
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastcifar.data import EpochPlan
from fastcifar.data.synthetic import make_synthetic
from fastcifar.models import build_model
from fastcifar.models.davidnet import DavidNet
from fastcifar.recipes import Augment, AverageConfig, EMAConfig, EvaluateConfig, SelectConfig, change
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.training import Listener, Trainer, estimate_statistics, train
from fastcifar.training.average import WeightAverage
from fastcifar.training.rehearse import replay_on_noise, step_on_noise
from fastcifar.training.step import EpochTensors
from tests import small
from tests.small import DAVIDNET

RECIPE = dataclasses.replace(DAVIDNET, epochs=2, batch_size=32, evaluate=EvaluateConfig(tta="none"))
NO_EMA = EMAConfig(decay=0)
EVERYTHING = dataclasses.replace(
    small.EVERYTHING,
    epochs=3.5,
    batch_size=32,
    early_batches=(),
    optimizer=SGDConfig(lr=0.05, bias_lr_factor=4),
    select=SelectConfig(keep=0.6, from_epoch=2),
    evaluate=RECIPE.evaluate,
)
"""Three stages in four epochs: small crops, small crops with the bias frozen, and whole images with it frozen."""


@pytest.fixture(scope="module")
def data():
    return make_synthetic(320, 100)


def same_weights(one, other) -> bool:
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.fixture
def plans(monkeypatch):
    """Return a list that takes the plan of every epoch that begins, with the losses of the images at that time."""
    seen, begin = [], EpochTensors.begin

    def record(tensors: EpochTensors, plan: EpochPlan) -> None:
        seen.append((plan, None if tensors.image_losses is None else tensors.image_losses.clone()))
        begin(tensors, plan)

    monkeypatch.setattr(EpochTensors, "begin", record)
    return seen


def test_an_epoch_in_part_is_a_row_of_fewer_steps(data):
    steps, recipe = [], dataclasses.replace(RECIPE, epochs=1.25)
    run = train(recipe, data, seed=3, listeners=[Listener(on_step=lambda step, total: steps.append((step, total)))])
    assert steps == [(step, 13) for step in range(1, 14)]
    assert [row.epoch for row in run.rows] == [1, 2] and run.record.steps == 13
    assert run.record.epochs == 1.25
    assert all(1 < row.train_loss < 4 and 0 <= row.train_accuracy <= 1 for row in run.rows)
    assert run.record.images_per_second == pytest.approx(13 * 32 / run.train_seconds)


def test_a_training_of_less_than_an_epoch_is_evaluated_once(data):
    run = train(dataclasses.replace(RECIPE, epochs=0.3), data)
    assert run.record.steps == 3 and [row.test_accuracy for row in run.rows] == [run.accuracy]


def test_brightness_and_contrast_reach_the_batches(data, plans):
    batches = []
    for augment in (Augment(), Augment(brightness=0.2, contrast=0.3)):
        trainer = Trainer(dataclasses.replace(RECIPE, epochs=0.2, augment=augment), data)
        trainer.model.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].clone()))
        trainer.run(3)
    added, factor = plans[-1][0].jitter[:64, :, None, None, None].unbind(1)
    torch.testing.assert_close(torch.cat(batches[2:]), torch.cat(batches[:2]) * factor + added)


@pytest.mark.parametrize("early", ["crop", "resize"])
def test_early_epochs_train_on_smaller_images(data, early):
    augment = Augment(crop=2, early_crops=((24, 0.3), (28, 0.6)), early=early)
    trainer, sizes = Trainer(dataclasses.replace(RECIPE, epochs=2.5, augment=augment), data), []
    trainer.model.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[2]))
    run = trainer.run(3)
    assert sizes == [24] * 10 + [28] * 10 + [32] * 5
    assert run.rows[-1].train_loss < run.rows[0].train_loss


def test_smaller_early_batches_are_steps_for_their_mean_loss(data):
    """Plain gradient descent, by hand."""
    recipe = dataclasses.replace(
        small.BARE,
        epochs=2,
        batch_size=64,
        early_batches=(20,),
        network=DavidNetConfig(widths=(4, 4, 4, 8), ghost_batch=0),
        augment=Augment(crop=0, flip="none", early_crops=((24, 0.5),)),
    )
    trainer, batches, losses = Trainer(recipe, data.take(320)), [], []
    trainer.model.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].clone()))
    run = trainer.run(3)
    assert [tuple(batch.shape) for batch in batches] == [(20, 3, 24, 24)] * 16 + [(64, 3, 32, 32)] * 5
    assert [(row.epoch, row.images) for row in run.rows] == [(1, 320), (2, 640)] and run.record.steps == 21
    model, train_split = trainer.new_network(3).module, trainer.dataset.train
    model.fit_whitening(train_split.images)
    model.train()
    for epoch, size in ((0, 20), (1, 64)):
        plan, total = EpochPlan.draw(320, recipe.augment, epoch, 3, size=24 if size == 20 else 32), 0.0
        for places in plan.indices.split(size):
            loss = F.cross_entropy(model(batches[len(losses)]), train_split.labels[places])
            losses.append(loss.item())
            total += loss.item() * len(places)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter, grad in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                parameter.data -= 0.05 * grad
        assert run.rows[epoch].train_loss == pytest.approx(total / 320, rel=1e-4)
    assert [trainer.state.history.mean_loss(step) for step in range(21)] == pytest.approx(losses, rel=1e-4)


def test_the_loss_of_an_image_is_that_of_its_last_visit(data, plans):
    recipe = dataclasses.replace(RECIPE, epochs=1, select=SelectConfig(keep=0.5, from_epoch=1))
    trainer = Trainer(recipe, data.take(310))
    run = trainer.run(3)
    losses, visited = trainer.state.tensors.image_losses, plans[-1][0].indices[:288]
    assert losses[visited].mean().item() == pytest.approx(run.rows[0].train_loss, rel=1e-5)
    unvisited = torch.ones(310, dtype=torch.bool).index_fill_(0, visited, False)
    assert unvisited.sum() == 22 and losses[unvisited].isinf().all()


def test_an_epoch_leaves_out_the_images_of_least_loss(data, plans):
    run = train(dataclasses.replace(RECIPE, epochs=4, select=SelectConfig(keep=0.55, from_epoch=2)), data, seed=3)
    assert run.record.steps == 10 + 10 + 5 + 5
    assert plans[0][1].isinf().all()
    for plan, _ in plans[:2]:
        assert sorted(plan.indices.tolist()) == list(range(320))
    for plan, losses in plans[2:]:
        assert sorted(plan.indices.tolist()) == sorted(losses.topk(176).indices.tolist())


@pytest.mark.parametrize("images", [320, 310])
def test_flips_by_visit_alternate_at_the_visits_of_each_image(data, plans, images):
    select = SelectConfig(keep=0.6, from_epoch=1)
    recipe = dataclasses.replace(small.MLP, epochs=6, batch_size=32, augment=Augment(flip="by-visit"), select=select)
    trainer = Trainer(recipe, data.take(images))
    for _ in range(2):  # the second run begins anew
        plans.clear()
        trainer.run(3)
        seen = [[] for _ in range(images)]
        for epoch, (plan, _) in zip(trainer.timeline.epochs, plans, strict=True):
            for place, flip in zip(plan.indices[: epoch.images].tolist(), plan.flips.tolist(), strict=False):
                seen[place].append(flip)
        assert all(one != other for flips in seen for one, other in itertools.pairwise(flips))
        assert trainer.state.tensors.visit_counts.tolist() == [len(flips) for flips in seen]
        assert len({len(flips) for flips in seen}) > 2 and len({flips[0] for flips in seen if flips}) == 2


def test_flips_by_visit_are_the_alternating_ones_where_every_epoch_trains_on_all_images(data):
    runs = [
        train(dataclasses.replace(small.MLP, augment=Augment(flip=flip)), data, seed=3)
        for flip in ("alternating", "by-visit", "random")
    ]
    assert same_weights(*runs[:2]) and torch.equal(runs[0].tta_logits, runs[1].tta_logits)
    assert not same_weights(*runs[1:])


def test_the_losses_of_one_run_are_forgotten_in_the_next(data, plans):
    trainer = Trainer(dataclasses.replace(RECIPE, epochs=2, select=SelectConfig(keep=0.5, from_epoch=1)), data)
    first, second = trainer.run(3), trainer.run(3)
    assert same_weights(first, second)
    assert plans[2][1].isinf().all()


def test_the_average_is_the_mean_of_the_last_weights(data):
    average = AverageConfig(epochs=0.55, every=2, images=32)
    trainer = Trainer(dataclasses.replace(RECIPE, ema=NO_EMA, average=average), data)
    weights = []

    def look(*_) -> None:
        weights.append(trainer.state.flat.state_dict())

    run = trainer.run(3, listeners=[Listener(on_step=look)])
    for name in dict(run.model.named_parameters()):
        expected = torch.stack([weights[step - 1][name] for step in (16, 18, 20)]).mean(0)
        torch.testing.assert_close(run.state[name], expected)
    plain = train(dataclasses.replace(RECIPE, ema=NO_EMA), data, seed=3)
    assert [row.train_loss for row in run.rows] == [row.train_loss for row in plain.rows]
    assert run.rows[0].test_accuracy == plain.rows[0].test_accuracy
    assert not same_weights(run, plain)
    assert run.train_seconds > run.rows[-2].seconds and run.rows[-1].seconds == run.train_seconds


def test_an_average_that_is_due_at_no_step_is_the_last_weights(data):
    averaged = dataclasses.replace(RECIPE, ema=NO_EMA, average=AverageConfig(epochs=1e-9, images=32))
    one, other = train(averaged, data, seed=3), train(dataclasses.replace(RECIPE, ema=NO_EMA), data, seed=3)
    trained = [name for name, _ in one.model.named_parameters()]
    assert all(torch.equal(one.state[name], other.state[name]) for name in trained)
    assert not torch.equal(*(run.state["stem.norm.running_mean"] for run in (one, other)))


def test_a_new_mean_forgets_the_last(data):
    trainer = Trainer(RECIPE, data)
    average, group = WeightAverage(trainer.state.flat), trainer.state.flat.groups[0]
    for values in ((1.0, 2.0, 6.0), (5.0,)):
        average.reset()
        for value in values:
            group.weights.fill_(value)
            average.add()
        torch.testing.assert_close(group.ema, torch.full_like(group.ema, sum(values) / len(values)))


@pytest.mark.parametrize(("images", "batches"), [(64, 2), (70, 2), (10, 1), (10**6, 3)])
def test_statistics_are_the_mean_over_the_batches_of_the_images_as_they_are(data, images, batches):
    torch.manual_seed(0)
    split = data.take(100).train
    model = DavidNet(DavidNetConfig(widths=(8, 8, 16, 16), ghost_batch=0), 10, data.mean, data.std).eval()
    model.fit_whitening(split.images)
    seen = []
    model.stem.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    estimate_statistics(model, split, images, 32, torch.float32)
    norm = model.stem.norm
    assert len(seen) == batches and norm.momentum == 0.1 and not model.training
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    pixels = (split.images[:32].permute(0, 3, 1, 2) - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[
        :, None, None
    ]
    torch.testing.assert_close(seen[0], model.stem.conv(F.conv2d(pixels, model.whitening.weight, padding=1)))


def test_statistics_are_those_of_all_images_where_they_are_fewer_than_a_batch(data):
    model = DavidNet(DavidNetConfig(widths=(8, 8, 16, 16), ghost_batch=0), 10, data.mean, data.std)
    found = []
    for batch_size in (20, 32):
        estimate_statistics(model, data.take(20).train, 64, batch_size, torch.float32)
        found.append(model.stem.norm.running_var.clone())
    assert torch.equal(*found) and not torch.equal(found[0], torch.ones(8))


def test_members_that_share_their_weights_pass_over_a_batch_once(data):
    recipe = change(RECIPE, {"ensemble.members": 3, "ensemble.joint": "shared"})
    network = build_model(recipe, 10, data.mean, data.std)
    alone = build_model(RECIPE, 10, data.mean, data.std)
    alone.load_state_dict(network.networks[0].state_dict())
    for each in (network, alone):
        estimate_statistics(each, data.take(96).train, 96, 32, torch.float32)
    assert torch.equal(network.networks[0].stem.norm.running_mean, alone.stem.norm.running_mean)


def test_a_network_without_batch_norm_is_averaged_too(data):
    recipe = dataclasses.replace(
        RECIPE, network=MLPConfig(hidden=(8,)), ema=NO_EMA, average=AverageConfig(epochs=1, every=3)
    )
    assert not same_weights(train(recipe, data), train(dataclasses.replace(recipe, average=AverageConfig()), data))


@pytest.mark.parametrize(
    "optimizer", [SGDConfig(lr=0.05, bias_lr_factor=1), AdamConfig(lr=0.005)], ids=lambda config: config.kind
)
@pytest.mark.parametrize("ema", [NO_EMA, EMAConfig(decay=0.9, every=1)], ids=["last", "average"])
def test_a_frozen_parameter_trains_until_its_epoch_and_then_stays_as_it_is(data, optimizer, ema):
    recipe = dataclasses.replace(EVERYTHING, optimizer=optimizer, ema=ema, average=AverageConfig())
    trainer, biases, others = Trainer(recipe, data), [], []
    early, other = (trainer.state.flat.group_of(name) for name in ("whitening.bias", "classifier.weight"))

    def look(*_) -> None:
        biases.append(early.weights.clone())
        others.append(other.weights.clone())

    for _ in range(2):  # the second run trains it again
        biases.clear()
        trainer.run(3, listeners=[Listener(on_step=look)])
        assert len(biases) == 10 + 10 + 6 + 3
        assert all(not torch.equal(*pair) for pair in itertools.pairwise(biases[:10]))
        assert all(torch.equal(bias, biases[9]) for bias in biases[10:])
        assert not torch.equal(others[-1], others[-2])
    if ema.decay:
        torch.testing.assert_close(early.ema, early.weights, rtol=0.2, atol=0.2 * early.weights.abs().max().item())
        assert torch.equal(early.compute, early.weights.to(early.compute.dtype))


def test_a_parameter_that_is_frozen_early_has_the_whole_schedule_before(data):
    trainer = Trainer(EVERYTHING, data)
    early = trainer.state.flat.group_of("whitening.bias")
    assert early.steps == 10 and len(early.parameters) == 1
    for group, rates in zip(trainer.state.flat.groups, trainer.state.optimizer.learning_rates(), strict=True):
        steps = 10 if group is early else trainer.total_steps
        assert rates == pytest.approx([0.05 * EVERYTHING.schedule((step + 1) / steps) for step in range(steps)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seed_names_a_run_with_everything_on(data, dtype):
    recipe = dataclasses.replace(EVERYTHING, dtype=dtype)
    trainer = Trainer(recipe, data)
    assert len(trainer.timeline.steps_by_stage()) == 3
    other = trainer.run(4)
    replay_on_noise(trainer)()
    first, second = trainer.run(3), train(recipe, data, seed=3)
    assert same_weights(first, second)
    assert torch.equal(first.tta_logits, second.tta_logits)
    assert not same_weights(first, other)
    assert first.record.steps == 10 + 10 + 6 + 3
    assert first.state["whitening.bias"].abs().max() > 0


@pytest.mark.parametrize("replayed", [False, True], ids=["launched", "replayed"])
def test_a_step_on_noise_trains_at_its_stages_size_as_often_as_one_likes_and_leaves_no_trace(data, replayed):
    recipe, few = dataclasses.replace(EVERYTHING, epochs=2.5), data.take(96)
    trainer = Trainer(recipe, few)
    sizes = []
    trainer.model.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[2]))
    group = trainer.state.flat.group_of("classifier.weight")
    for stage in trainer.timeline.steps_by_stage():
        step = replay_on_noise(trainer, stage) if replayed else step_on_noise(trainer, stage)
        sizes.clear()
        for number in range(trainer.timeline.steps_per_epoch + 2):  # past the end of an epoch
            before = group.weights.clone()
            step()
            assert trainer.state.optimizer.count.item() == number + 1 and not torch.equal(group.weights, before)
            assert trainer.state.tensors.losses[1:].eq(0).all()
        if trainer.device.type == "cpu":  # a replay calls no hook
            assert sizes == [stage.size] * (trainer.timeline.steps_per_epoch + 2)
    assert same_weights(trainer.run(3), train(recipe, few, seed=3)) or trainer.device.type == "cuda"


@pytest.mark.gpu
def test_each_stage_is_captured_once_and_replayed(data):
    recipe = dataclasses.replace(EVERYTHING, dtype="float32")
    trainer = Trainer(recipe, data.to("cuda"), "cuda")
    first = trainer.run(3)
    replays = dict(trainer.replays)
    assert len(replays) == 3 and trainer.step not in replays.values()
    second = trainer.run(3)
    assert trainer.replays == replays
    assert [row.train_loss for row in first.rows] == pytest.approx([row.train_loss for row in second.rows], rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "optimizer", [EVERYTHING.optimizer, MuonConfig(lr=0.05, bias_lr=0.05, head_lr=0.05)], ids=["sgd", "muon"]
)
def test_captured_stages_train_as_the_steps_themselves_do(data, optimizer):
    recipe = dataclasses.replace(EVERYTHING, dtype="float32", epochs=2.5, optimizer=optimizer)
    captured = Trainer(recipe, data.to("cuda"), "cuda")
    eager = Trainer(recipe, data.to("cuda"), "cuda")
    eager.replays = {stage: partial(eager.step, stage) for stage in eager.timeline.steps_by_stage()}
    losses = [[row.train_loss for row in trainer.run(3).rows] for trainer in (captured, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
