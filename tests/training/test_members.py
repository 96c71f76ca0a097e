"""Networks trained at once: with the sum bit for bit what independent runs are, and what each loss does."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcifar.data.residency import place_images
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import Members, Network
from fastcifar.recipes import EnsembleConfig, LookaheadConfig, MixConfig, get_recipe, to_toml
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers.lars import LARSConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig, AdamWConfig
from fastcifar.start import ColdStart
from fastcifar.training import Listener, Trainer, evaluate, load_run, train
from fastcifar.training.step import TrainingStep
from tests.small import BARE, DAVIDNET, EVERYTHING, MLP

RECIPES = {
    "davidnet": DAVIDNET,
    # Muon, images left out, flips by visit, early crops, a bias frozen later, an average
    "everything": dataclasses.replace(EVERYTHING, lookahead=LookaheadConfig(every=3)),
    "normuon": dataclasses.replace(DAVIDNET, optimizer=MuonConfig(bias_lr=0.1, head_lr=0.1, row_momentum=0.9)),
    "lars": dataclasses.replace(DAVIDNET, optimizer=LARSConfig(bias_lr=0.1)),
    "Adam": dataclasses.replace(MLP, optimizer=AdamConfig(lr=0.01)),
    "bfloat16": dataclasses.replace(DAVIDNET, dtype="bfloat16"),
    "mixed": dataclasses.replace(MLP, mix=MixConfig(mixup=0.5, cutmix=1.0)),
    "last batch": dataclasses.replace(
        DAVIDNET, drop_last=False, batch_size=32, network=DavidNetConfig((4, 4, 4, 8), ghost_batch=0)
    ),
}


def jointly(recipe, members=3, joint="sum", order="own"):
    return dataclasses.replace(recipe, ensemble=EnsembleConfig(members, joint, order))


@pytest.fixture(scope="module")
def data():
    return make_synthetic(100, 20)


def weights(run, member=None):
    """The tensors of a run, or of one of its members by the names that they have alone."""
    if member is None:
        return run.state
    prefix = f"networks.{member}."
    return {name.removeprefix(prefix): tensor for name, tensor in run.state.items() if name.startswith(prefix)}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_close(one, other, rtol=1e-4):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", RECIPES)
def test_the_sum_with_own_orders_is_training_alone_bit_for_bit(data, name):
    recipe = RECIPES[name]
    joint = train(jointly(recipe, 2), data, seed=3, eval_every=0)
    alone = [train(recipe, data, seed=seed, eval_every=0) for seed in (6, 7)]  # 3 * 2 and after
    for member, run in enumerate(alone):
        assert_equal(weights(joint, member), weights(run))
        assert torch.equal(joint.member_plain_logits[member], run.plain_logits)
        assert torch.equal(joint.member_tta_logits[member], run.tta_logits)
    for row, *rows in zip(joint.rows, *(run.rows for run in alone), strict=True):
        assert row.train_loss == pytest.approx(np.mean([each.train_loss for each in rows]), rel=1e-5)
        assert row.train_accuracy == pytest.approx(np.mean([each.train_accuracy for each in rows]))
    mean = torch.stack([run.plain_logits for run in alone]).mean(0)
    torch.testing.assert_close(joint.plain_logits, mean, rtol=1e-2 if recipe.dtype == "bfloat16" else 1e-5, atol=1e-2)


def test_a_shared_order_is_that_of_independent_members_with_weights_of_other_seeds(data):
    joint = train(jointly(DAVIDNET, order="shared"), data, seed=2, eval_every=0)
    for member, seed in enumerate((6, 7, 8)):
        alone = train(DAVIDNET, data, seed=6, init=ColdStart(seed), eval_every=0)
        assert_equal(weights(joint, member), weights(alone))
    assert alone.record.init == {"mode": "cold", "seed": 8}


def test_where_images_are_left_out_members_with_a_shared_order_see_the_same_ones(data, monkeypatch):
    batches, images_of = [], TrainingStep._images

    def noted(step, batch, size):
        batches.append(batch.indices.clone())
        return images_of(step, batch, size)

    monkeypatch.setattr(TrainingStep, "_images", noted)
    run = train(jointly(EVERYTHING, 2, order="shared"), data, eval_every=0)
    assert len(batches) == run.record.steps
    batches.clear()
    train(jointly(EVERYTHING, 2), data, eval_every=0)
    assert len(batches) == 2 * run.record.steps
    assert not any(torch.equal(*pair) for pair in zip(batches[::2], batches[1::2], strict=True))


def test_the_mean_divides_rates_of_sgd_by_the_members(data):
    sgd = SGDConfig(lr=0.1, weight_decay=0.01)
    mean = train(jointly(dataclasses.replace(BARE, optimizer=sgd), joint="mean"), data)
    equal = dataclasses.replace(sgd, lr=sgd.lr / 3, weight_decay=3 * sgd.weight_decay)
    assert_close(weights(mean), weights(train(jointly(dataclasses.replace(BARE, optimizer=equal)), data)))
    other = train(jointly(dataclasses.replace(BARE, optimizer=sgd)), data)
    assert not torch.allclose(next(iter(weights(mean).values())), next(iter(weights(other).values())), rtol=1e-3)


@pytest.mark.parametrize("joint", ["mean", "sum", "logits", "shared"])
def test_a_step_follows_the_gradient_of_its_loss(data, joint):
    """Of one batch of all images in one order, against plain torch."""
    recipe = dataclasses.replace(BARE, epochs=1, batch_size=100)
    order = "shared"
    trainer = Trainer(jointly(recipe, joint=joint, order=order), data)
    before = trainer.new_network(seed=4)
    run = trainer.run(4)
    plan = trainer.state.tensors.plan
    images = plan.batch(0, 100).augment(data.train.images, mean=data.mean, std=data.std, dtype=torch.float32)
    labels, logits = data.train.labels[plan.indices], [network(images) for network in before.networks]
    losses = torch.stack([F.cross_entropy(each, labels) for each in logits])
    together = F.cross_entropy(torch.stack(logits).mean(0), labels)
    loss = {"sum": losses.sum(), "logits": together}.get(joint, losses.mean())
    loss.backward()
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(run.state[name], parameter - 0.05 * parameter.grad, rtol=1e-4, atol=1e-6)
    reported = together if joint == "logits" else losses.mean()
    assert run.rows[0].train_loss == pytest.approx(reported.item(), rel=1e-5)


@pytest.mark.parametrize("recipe", [DAVIDNET, EVERYTHING], ids=["davidnet", "everything"])
def test_members_differ_and_share_no_storage(data, recipe):
    trainer = Trainer(jointly(recipe), data)
    run = trainer.run()
    for model in (trainer.network, trainer.evaluated, run.model):
        places = [
            {tensor.data_ptr() for tensor in (*each.parameters(), *each.buffers()) if tensor.numel()}
            for each in model.networks
        ]
        assert all(one.isdisjoint(other) for one, other in itertools.combinations(places, 2))
    for one, other in itertools.combinations(run.model.networks, 2):
        trained = [name for name, parameter in one.named_parameters() if parameter.requires_grad]
        assert trained and not any(
            torch.equal(one.get_parameter(name), other.get_parameter(name)) for name in trained if "norm" not in name
        )
    assert [network is other for network in run.model.networks for other in run.model.members].count(True) == 3


@pytest.mark.parametrize("members", [2, 4])
def test_members_that_share_weights_are_one_network_whose_statistics_move_more_often(data, members):
    """The diary's pseudo-ensemble. Halves and quarters of a gradient add up to it bit for bit, and so the weights are
    those of one network; but running statistics move at every pass, and so follow faster."""
    recipe = dataclasses.replace(DAVIDNET, ema=dataclasses.replace(DAVIDNET.ema, decay=0.0))
    run = train(jointly(recipe, members, joint="shared", order="shared"), data, seed=1)
    assert len({id(network) for network in run.model.networks}) == 1 and run.model.members == ()
    assert run.member_tta_logits is None
    momentum = 1 - (1 - recipe.network.norm_momentum) ** members
    faster = dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, norm_momentum=momentum))
    alone, expected = (weights(train(each, data, seed=members)) for each in (recipe, faster))
    shared = weights(run, members - 1)
    running = [name for name in alone if "running" in name]
    assert_equal(*({name: each[name] for name in alone if name not in running} for each in (shared, alone)))
    assert_close(*({name: each[name] for name in running} for each in (shared, expected)), rtol=1e-4)
    assert not any(torch.allclose(shared[name], alone[name], rtol=1e-3) for name in running if "var" in name)


class Saved(Exception):
    pass


@pytest.mark.parametrize("order", ["own", "shared"])
def test_a_training_goes_on_from_its_state(data, order):
    recipe = jointly(EVERYTHING, 2, order=order)
    whole, states = train(recipe, data, seed=5), []

    def stop(step, total):
        if step == 11:
            states.append(trainer.state.state_dict())
            raise Saved

    trainer = Trainer(recipe, data)
    with pytest.raises(Saved):
        trainer.run(5, listeners=[Listener(on_step=stop)])
    assert_equal(Trainer(recipe, data).run(resume=states[0]).state, whole.state)


def test_a_member_is_taken_out_of_a_saved_run(data, tmp_path):
    run = train(jointly(DAVIDNET), data)
    run.save(tmp_path / "run")
    _, whole, record = load_run(tmp_path / "run")
    assert isinstance(whole, Members) and record.recipe == run.recipe
    how = dataclasses.replace(run.recipe.evaluate)
    assert torch.equal(evaluate(whole, data.test, how).logits, run.tta_logits)
    for number in range(3):
        member = load_run(tmp_path / "run", member=number)[1]
        assert not isinstance(member, Members) and isinstance(member, Network)
        assert torch.equal(evaluate(member, data.test, how).logits, run.member_tta_logits[number])
    with pytest.raises(UserError, match="is asked for; allowed: 0 to 2"):
        load_run(tmp_path / "run", member=3)
    train(DAVIDNET, data).save(tmp_path / "one")
    with pytest.raises(UserError, match="allowed: none, it has no members"):
        load_run(tmp_path / "one", member=0)


def test_a_network_of_ones_own_has_members_too(data, tmp_path):
    def build(classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, classes))

    joint = train(jointly(BARE), data, seed=1, model=build)
    alone = train(BARE, data, seed=4, model=build)
    assert_equal({name.removeprefix("config."): tensor for name, tensor in weights(joint, 1).items()}, weights(alone))
    joint.save(tmp_path / "run")
    member = load_run(tmp_path / "run", build, member=1)[1]
    assert_equal(member.state_dict(), alone.model.state_dict())


def test_what_does_not_go_together_is_refused(data):
    with pytest.raises(UserError, match="order is 'own'; allowed: shared with ensemble"):
        EnsembleConfig(2, "logits", "own")
    with pytest.raises(UserError, match="members is 0; allowed: 1 to 1,000 networks"):
        EnsembleConfig(0)
    in_host = place_images(data, "host", torch.device("cpu"))
    with pytest.raises(UserError, match="the training images do not lie on the device; allowed: shared"):
        Trainer(jointly(MLP), in_host)
    shared = jointly(MLP, order="shared")
    assert_equal(train(shared, in_host).state, train(shared, data).state)


def test_seeds_of_different_runs_differ_and_a_recipe_file_holds_the_section(tmp_path):
    config = EnsembleConfig(3)
    assert [config.seeds(seed) for seed in (0, 1)] == [(0, 1, 2), (3, 4, 5)] and EnsembleConfig().seeds(7) == (7,)
    assert config.order_seeds(1) == (3, 4, 5) and EnsembleConfig(3, order="shared").order_seeds(1) == (3,)
    (tmp_path / "small.toml").write_text(to_toml(jointly(MLP)))
    assert get_recipe(str(tmp_path / "small.toml")) == jointly(MLP)


RATES = [
    (
        SGDConfig(lr=0.4),
        "joint mean: the gradient of each member is divided by 4: optimizer.lr 0.4 acts as 0.1, "
        "optimizer.weight_decay 0.0005 acts as 0.002",
    ),
    (
        MuonConfig(lr=0.2, bias_lr=4, head_lr=2),
        "joint mean: the gradient of each member is divided by 4: optimizer.bias_lr 4 acts as 1, optimizer.head_lr 2 "
        "acts as 0.5, optimizer.lr 0.2 acts as it is, as the steps of muon at it do not depend on the gradients' size",
    ),
    (
        AdamConfig(lr=0.01),
        "joint mean: the gradient of each member is divided by 4: optimizer.lr 0.01 acts as it is, as the steps of "
        "Adam at it do not depend on the gradients' size",
    ),
    (
        LARSConfig(),
        "joint mean: the gradient of each member is divided by 4: optimizer.bias_lr 25 acts as 6.25, "
        "optimizer.weight_decay 0.0005 acts as 0.002, optimizer.lr 20 acts as it is, as the steps of lars at it do not "
        "depend on the gradients' size but for that decay",
    ),
]


@pytest.mark.parametrize(("optimizer", "said"), RATES, ids=["sgd", "muon", "Adam", "lars"])
def test_what_a_loss_does_to_the_rates_is_said(optimizer, said):
    assert EnsembleConfig(4).rates(optimizer) == said
    assert EnsembleConfig(4, "logits", "shared").rates(optimizer) == said.replace("mean", "logits")
    assert not any(EnsembleConfig(4, joint).rates(optimizer) for joint in ("sum", "shared"))
    assert EnsembleConfig().rates(optimizer) == ""


ACTING = {
    "sgd": SGDConfig(lr=0.4),
    "lars": LARSConfig(),
    "muon": MuonConfig(lr=0.2, bias_lr=0.4, head_lr=0.4),
    "Adam": AdamConfig(lr=0.05, weight_decay=0.05),
    "AdamW": AdamWConfig(lr=0.05, weight_decay=0.5),
}
LEAST = {"sgd": 0.0, "lars": 0.0, "muon": 2e-3, "Adam": 2e-3, "AdamW": 5e-3}
"""How far weights may lie apart: where all is in proportion, and divided by a power of 2, they are equal. Muon and Adam
add small numbers to what they divide by."""


@pytest.mark.parametrize("name", list(ACTING))
def test_scale_free_is_what_the_optimizers_are(data, name):
    """A fourth of the loss trains as the whole does with the rates and the decay that are said to act, and with these
    alone."""
    optimizer = ACTING[name]
    said = dict(re.findall(r"optimizer\.(\w+) \S+ acts as ([0-9][^, ]*)", EnsembleConfig(4).rates(optimizer)))
    acting = {field: float(value) for field, value in said.items()}
    assert ("lr" in acting) is not optimizer.scale_free and ("weight_decay" in acting) is optimizer.coupled_decay

    def trained(scale, **changes):
        config = dataclasses.replace(optimizer, **changes)
        recipe = dataclasses.replace(DAVIDNET, optimizer=config, label_smoothing=0.0, epochs=1)
        return weights(train(recipe, data, loss=lambda logits, labels: scale * F.cross_entropy(logits, labels)))

    def apart(one, other):
        return max(float((one[each] - other[each]).abs().max()) for each in one if one[each].is_floating_point())

    fourth = trained(0.25)
    assert apart(fourth, trained(1.0, **acting)) <= LEAST[name]
    for field, value in acting.items():
        assert value != getattr(optimizer, field)
        assert apart(fourth, trained(1.0, **{**acting, field: getattr(optimizer, field)})) > LEAST[name], field
    if optimizer.scale_free:
        assert apart(fourth, trained(1.0, **acting, lr=optimizer.lr / 4)) > LEAST[name]
