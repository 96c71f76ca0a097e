"""Lookahead over flat buffers and alone: when slow and fast weights meet, and where."""

import dataclasses

import pytest
import torch

from fastcifar.errors import UserError
from fastcifar.models import DavidNet
from fastcifar.optim import FlatLookahead, FlatModel, Lookahead, build_optimizer
from fastcifar.optim.lookahead import lookahead_shares
from fastcifar.recipes import EMAConfig, LookaheadConfig, ModelConfig, OptimConfig, Recipe

BATCH, STEPS = 8, 8
NARROW = ModelConfig(widths=(4, 8, 12, 16), ghost_batch=4)
RECIPE = Recipe(
    model=NARROW, batch_size=BATCH, lookahead=LookaheadConfig(every=3, decay=0.8, decay_power=2), ema=EMAConfig(decay=0)
)


def make_model(seed=0):
    torch.manual_seed(seed)
    return DavidNet(NARROW)


def fill_state(flat, step):
    """Gradients, and running statistics, that depend on `step` alone."""
    generator = torch.Generator().manual_seed(step)
    for group in flat.groups:
        group.grads.copy_(torch.randn(group.grads.shape, generator=generator))
    flat.statistics.add_(torch.randn(flat.statistics.shape, generator=generator))


def buffers(flat):
    return [*(group.weights for group in flat.groups), flat.statistics]


@pytest.mark.parametrize("name", ["sgd", "muon", "lars", "AdamW"])
def test_slow_and_fast_weights_meet_as_said_around_every_optimiser(name):
    recipe = dataclasses.replace(RECIPE, optim=OptimConfig(name, lr=0.01, bias_lr=0.01, head_lr=0.01))
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


@pytest.mark.parametrize("decay", [0.25, lambda steps: steps / 10], ids=["constant", "function"])
def test_alone_it_wraps_an_optimiser_of_torch(decay):
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Lookahead(torch.optim.SGD([parameter], lr=0.1), every=2, decay=decay)
    fast = slow = parameter.detach().clone()
    for step in range(1, 6):
        optimizer.zero_grad()
        loss = optimizer.step(lambda: (parameter.square().sum().backward(), 7.0)[1])
        assert loss == 7.0
        fast = fast - 0.1 * 2 * fast
        if step % 2 == 0:
            fast = slow = slow + (1 - (decay(step) if callable(decay) else decay)) * (fast - slow)
        torch.testing.assert_close(parameter.data, fast)
    optimizer.finish()
    torch.testing.assert_close(parameter.data, slow)
    assert optimizer.param_groups is optimizer.optimizer.param_groups


def test_alone_it_goes_on_from_its_saved_state_and_takes_groups_that_come_later():
    torch.manual_seed(0)
    results = []
    for stops in (False, True):
        parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
        optimizer = Lookahead(torch.optim.SGD(parameters[:1], lr=0.1, momentum=0.9), every=2)
        for step in range(6):
            if step == 1:
                optimizer.optimizer.add_param_group({"params": parameters[1:]})
            if step == 3 and stops:
                state = optimizer.state_dict()
                optimizer = Lookahead(torch.optim.SGD([{"params": [p]} for p in parameters], lr=9.9), every=2)
                optimizer.load_state_dict(state)
            for parameter in parameters:
                parameter.grad = parameter.detach().clone()
            optimizer.step()
        results.append([parameter.detach().clone() for parameter in parameters])
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"^every of Lookahead is 0; allowed: 1 or more steps$"):
        Lookahead(torch.optim.SGD([torch.ones(1)]), every=0)
    with pytest.raises(UserError, match=r"^decay of Lookahead is 1\.0; allowed: 0 up to, not including, 1, or a func"):
        Lookahead(torch.optim.SGD([torch.ones(1)]), decay=1.0)
    with pytest.raises(UserError, match=r"^lookahead\.decay is 1\.0; allowed: 0 up to, not including, 1$"):
        LookaheadConfig(decay=1.0)
    with pytest.raises(UserError, match=r"^lookahead\.every is -1; allowed: 0 \(off\) or a number of steps$"):
        LookaheadConfig(every=-1)
