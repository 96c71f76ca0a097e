"""Lookahead over flat buffers: when slow and fast weights meet, and where."""

import dataclasses

import pytest
import torch

from fastcifar.errors import UserError
from fastcifar.models.davidnet import DavidNet
from fastcifar.optim import FlatLookahead, FlatModel, build_optimizer
from fastcifar.optim.lookahead import lookahead_shares
from fastcifar.recipes import EMAConfig, LookaheadConfig, Recipe
from tests import kinds
from tests.small import NARROW

BATCH, STEPS = 8, 8
RECIPE = Recipe(
    network=NARROW,
    batch_size=BATCH,
    lookahead=LookaheadConfig(every=3, decay=0.8, decay_power=2),
    ema=EMAConfig(decay=0),
)


def make_model(seed=0):
    torch.manual_seed(seed)
    return DavidNet(NARROW)


def fill_state(flat, step):
    """Set gradients and running statistics that depend on `step` alone."""
    generator = torch.Generator().manual_seed(step)
    for group in flat.groups:
        group.grads.copy_(torch.randn(group.grads.shape, generator=generator))
    flat.statistics.add_(torch.randn(flat.statistics.shape, generator=generator))


def buffers(flat):
    return [*(group.weights for group in flat.groups), flat.statistics]


@pytest.mark.parametrize("name", ["sgd", "muon", "lars", "AdamW"])
def test_slow_and_fast_weights_synchronize_around_every_optimizer(name):
    recipe = dataclasses.replace(RECIPE, optimizer=kinds.optimizer(name, lr=0.01, bias_lr=0.01, head_lr=0.01))
    flat, plain = FlatModel(make_model(), torch.float64), FlatModel(make_model(), torch.float64)
    optimizer = build_optimizer(flat, recipe, STEPS)
    inner = build_optimizer(plain, dataclasses.replace(recipe, lookahead=LookaheadConfig()), STEPS)
    assert isinstance(optimizer, FlatLookahead) and isinstance(optimizer.inner, type(inner))
    assert optimizer.not_capturable == inner.not_capturable
    slow = [buffer.clone() for buffer in buffers(plain)]
    for step in range(1, STEPS + 1):
        fill_state(flat, step)
        fill_state(plain, step)
        optimizer.step()
        inner.step()
        for mine, buffer in zip(slow, buffers(plain), strict=True):
            if step % 3 == 0:
                mine += (1 - 0.8 * (step / STEPS) ** 2) * (buffer - mine)
            if step % 3 == 0 or step == STEPS:  # after the last step the slow weights are what remains
                buffer.copy_(mine)
        for mine, expected in zip(buffers(flat), buffers(plain), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
        assert all(torch.equal(group.compute, group.weights.to(group.compute.dtype)) for group in flat.groups)


def test_airbench96s_shares():
    shares = lookahead_shares(LookaheadConfig(every=5), 20)
    assert [step + 1 for step, share in enumerate(shares) if share is not None] == [5, 10, 15, 20]
    assert shares[4] == pytest.approx(1 - 0.95**5 * (5 / 20) ** 3)
    assert shares[-1] == pytest.approx(1 - 0.95**5)
    assert lookahead_shares(LookaheadConfig(every=5), 12)[-1] == 0
    assert lookahead_shares(LookaheadConfig(every=5, decay=0.5, decay_power=0), 10)[4] == 0.5


def test_the_moving_average_and_the_compute_copy_follow_the_weights_after_the_meeting():
    recipe = dataclasses.replace(RECIPE, ema=EMAConfig(decay=0.9, every=1))
    flat = FlatModel(make_model(), torch.bfloat16)
    optimizer = build_optimizer(flat, recipe, STEPS)
    averages = [buffer.clone() for buffer in buffers(flat)]
    for step in range(STEPS):
        fill_state(flat, step)
        optimizer.step()
        for average, buffer in zip(averages, buffers(flat), strict=True):
            average += (1 - 0.9) * (buffer - average)
        assert all(torch.equal(group.compute, group.weights.to(group.compute.dtype)) for group in flat.groups)
    for average, ema in zip(averages, [*(g.ema for g in flat.groups), flat.statistics_ema], strict=True):
        torch.testing.assert_close(ema, average)


def test_a_reset_starts_from_the_weights_that_were_loaded():
    flat = FlatModel(make_model())
    optimizer, results = build_optimizer(flat, RECIPE, STEPS), []
    for seed in (0, 1, 0):
        flat.load(make_model(seed))
        optimizer.reset()
        for step in range(STEPS):
            fill_state(flat, step)
            optimizer.step()
        results.append(flat.groups[0].weights.clone())
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"^lookahead\.decay is 1\.0; allowed: 0 up to, not including, 1$"):
        LookaheadConfig(decay=1.0)
    with pytest.raises(UserError, match=r"^lookahead\.every is -1; allowed: 0 or more steps$"):
        LookaheadConfig(every=-1)
