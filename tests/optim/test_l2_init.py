"""L2 Init over flat buffers: the gradients that the optimizer inside it sees, whole and in a divided backward pass."""

import dataclasses

import pytest
import torch

from fastcifar.errors import UserError
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.optim import FlatL2Init, FlatLookahead, FlatModel, build_optimizer
from fastcifar.recipes import EMAConfig, LookaheadConfig, LossScalingConfig, Recipe
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.training.loss import LossScale
from tests import kinds
from tests.small import NARROW

BATCH, STEPS, STRENGTH = 8, 5, 0.03
RECIPE = Recipe(network=NARROW, batch_size=BATCH, l2_init=STRENGTH, ema=EMAConfig(decay=0.9, every=2))
OPTIMIZERS = ["sgd", "muon", "lars", "AdamW", "SGD"]


def make_flat(seed=0, dtype=torch.float64, wide=False):
    torch.manual_seed(seed)
    return FlatModel(DavidNet(NARROW), dtype, wide_gradients=wide)


def recipe_of(name, **changes):
    section = kinds.optimizer(name, lr=0.01, bias_lr=0.01, head_lr=0.01)
    return dataclasses.replace(RECIPE, optimizer=section, **changes)


def fill(flat, step):
    generator = torch.Generator().manual_seed(step)
    for group in flat.groups:
        group.grads.copy_(torch.randn(group.grads.shape, generator=generator, dtype=torch.float64))


def assert_same(one, other, **tolerance):
    for mine, theirs in zip(one.groups, other.groups, strict=True):
        for name in ("weights", "velocity", "ema", "compute"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), **tolerance)


EXACTLY = {"rtol": 0.0, "atol": 0.0}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("every", [0, 2])
def test_every_optimizer_sees_the_gradient_of_the_penalty_too(name, every):
    """Also within lookahead, from other weights than the anchors."""
    recipe = recipe_of(name, lookahead=LookaheadConfig(every=every))
    flat, plain = make_flat(), make_flat()
    optimizer = build_optimizer(flat, recipe, STEPS)
    inner = build_optimizer(plain, dataclasses.replace(recipe, l2_init=0.0), STEPS)
    assert isinstance(optimizer, FlatLookahead if every else FlatL2Init)
    assert optimizer.not_capturable == inner.not_capturable
    anchors = []
    for each, own in ((flat, optimizer), (plain, inner)):
        each.load(make_flat(1).model)
        anchors = [group.weights.clone() for group in each.groups]
        own.anchor()
        each.load(make_flat(2).model)
        own.reset()
    for step in range(STEPS):
        fill(flat, step)
        fill(plain, step)
        for group, anchor in zip(plain.groups, anchors, strict=True):
            group.grads.add_(group.weights - anchor, alpha=STRENGTH * BATCH)
        optimizer.step()
        inner.step()
    assert_same(flat, plain, rtol=1e-12, atol=1e-12)
    assert optimizer.learning_rate(3) == inner.learning_rate(3)


def test_without_strength_it_is_the_optimizer_inside_bit_for_bit():
    flat, plain = make_flat(), make_flat()
    optimizer = FlatL2Init(build_optimizer, flat, dataclasses.replace(RECIPE, l2_init=0.0), STEPS)
    inner = build_optimizer(plain, dataclasses.replace(RECIPE, l2_init=0.0), STEPS)
    assert not isinstance(inner, FlatL2Init)
    for step in range(STEPS):
        fill(flat, step)
        fill(plain, step)
        optimizer.step()
        inner.step()
    assert_same(flat, plain, **EXACTLY)


def loss_of(flat, step):
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return flat.model.train()(images).square().sum()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_divided_backward_pass_gives_each_weight_its_pull_once(scaled):
    results = []
    for overlap in (True, False):
        config = SpeedrunConfig(widths=(4, 4, 8))
        recipe = recipe_of("muon", network=config)
        recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, overlap=overlap))
        torch.manual_seed(0)
        flat = FlatModel(SpeedrunNet(config), torch.float64)
        optimizer = build_optimizer(flat, recipe, STEPS)
        assert any(flat.is_above(parameter) for group in flat.groups for parameter in group.parameters) == overlap
        scale = LossScale(LossScalingConfig(dynamic=True, initial=float(BATCH)), BATCH)
        for step in range(STEPS):
            flat.backward(loss_of(flat, step), halfway=(lambda copy: copy()) if scaled else optimizer.step_above)
            if scaled:
                scale.step(optimizer)
            else:
                optimizer.step()
        results.append(flat)
    assert_same(*results, rtol=1e-9, atol=1e-12)


def test_a_step_that_is_left_out_or_broken_off_leaves_nothing():
    flat, plain = make_flat(), make_flat()
    optimizer, other = (build_optimizer(each, recipe_of("muon"), STEPS) for each in (flat, plain))
    fill(flat, 0)
    optimizer.step_above()  # broken off here: the weights above have moved
    flat.load(make_flat().model)
    optimizer.reset()
    for each, own in ((flat, optimizer), (plain, other)):
        own.skip()
        fill(each, 1)
        own.step()
        assert own.count.item() == 2
    assert_same(flat, plain, **EXACTLY)


def test_what_is_frozen_keeps_its_weights_and_gradients():
    flat = make_flat()
    optimizer = build_optimizer(flat, RECIPE, STEPS)
    flat.load(make_flat(1).model)
    fill(flat, 0)
    frozen = flat.groups[0]
    for parameter in frozen.parameters:
        parameter.requires_grad_(False)
    before = frozen.weights.clone(), frozen.grads.clone()
    for _ in range(2):
        optimizer.step()
    assert torch.equal(frozen.weights, before[0]) and torch.equal(frozen.grads, before[1])
    assert not torch.equal(flat.groups[1].weights, make_flat(1).groups[1].weights)


def test_small_pulls_count_in_half_precision_where_gradients_are_wide():
    """A pull of 1e-6 of a gradient: bfloat16 keeps three digits."""
    recipe = recipe_of("SGD", l2_init=1e-5, ema=EMAConfig(decay=0.0))
    moved = []
    for strength in (1e-5, 0.0):
        flat = make_flat(dtype=torch.bfloat16, wide=True)
        optimizer = build_optimizer(flat, dataclasses.replace(recipe, l2_init=strength), STEPS)
        for group in flat.groups:
            group.weights.add_(1.0)
            group.grads.fill_(BATCH * 1.0)
        optimizer.step()
        moved.append(flat.groups[0].weights.clone())
    assert (moved[0] < moved[1]).all()


@pytest.mark.parametrize("name", ["sgd", "Adam"])
def test_anchors_are_in_the_state_and_another_networks_are_refused(name):
    flat = make_flat()
    optimizer = build_optimizer(flat, recipe_of(name), STEPS)
    state = optimizer.state_dict()
    kept = [anchor.clone() for anchor in state["anchors"]]
    flat.load(make_flat(3).model)
    optimizer.anchor()
    assert not torch.equal(optimizer.state_dict()["anchors"][0], kept[0])
    fill(flat, 0)
    optimizer.step()
    for damage in ({**state, "anchors": kept[:-1]}, {**state, "anchors": [each[1:] for each in kept]}):
        with pytest.raises(UserError, match=r"^anchors\.\d of the training's state is (absent|\[\d+\]); allowed: \["):
            optimizer.load_state_dict(damage)
    assert optimizer.count.item() == 1
    optimizer.load_state_dict({**state, "count": torch.tensor([4]), "anchors": kept})
    assert optimizer.count.item() == 4
    for anchor, expected in zip(optimizer.state_dict()["anchors"], kept, strict=True):
        assert torch.equal(anchor, expected)
