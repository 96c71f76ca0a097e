"""Lookahead over flat buffers and alone: when slow and fast weights meet, and where."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import fastcifar
from fastcifar.errors import UserError
from fastcifar.models.davidnet import DavidNet
from fastcifar.optim import FlatLookahead, FlatModel, build_optimizer
from fastcifar.optim.lookahead import Lookahead, lookahead_shares
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


def plain(shapes=((3, 4), (5,)), **settings):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    return parameters, torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **settings)


def fill(parameters, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("every", "decay"), [(1, 0.5), (3, 0.2), (3, 0.0)])
def test_alone_it_is_zhangs_algorithm_around_any_optimizer(every, decay):
    ours, inner = plain()
    optimizer = Lookahead(inner, every, decay)
    fast, reference = plain()
    slow = [parameter.detach().clone() for parameter in fast]
    for step in range(1, 9):
        fill(ours, step)
        fill(fast, step)
        optimizer.step()
        reference.step()
        if step % every == 0:
            for mine, theirs in zip(slow, fast, strict=True):
                mine += (1 - decay) * (theirs.detach() - mine)
                theirs.data.copy_(mine)
        for mine, expected in zip(ours, fast, strict=True):
            torch.testing.assert_close(mine, expected)
    assert fastcifar.Lookahead is Lookahead
    optimizer.finish()
    for mine, expected in zip(ours, slow, strict=True):
        torch.testing.assert_close(mine.detach(), expected)


def test_alone_slow_weights_begin_where_the_first_step_after_a_move_does():
    """Weights may be loaded once the optimizer is built, and a group may be added between two moves."""
    (parameter,), inner = plain(((2, 2),))
    optimizer = Lookahead(inner, every=2, decay=0.5)
    for start in (3.0, -7.0):
        parameter.data.fill_(start)
        inner.state.clear()
        for _ in range(2):
            parameter.grad = torch.ones(2, 2)
            optimizer.step()
        moved = 0.1 * (1 + 1.9)
        torch.testing.assert_close(parameter.detach(), torch.full((2, 2), start - moved / 2))
    parameter.grad = torch.zeros(2, 2)
    optimizer.step()
    late = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((2,), 1 - 0.1 / 2))


def test_alone_its_state_and_the_optimizers_are_told_apart():
    ours, inner = plain()
    optimizer = Lookahead(inner, every=3)
    for step in range(4):
        fill(ours, step)
        optimizer.step()
    state = optimizer.state_dict()
    _, other = plain()
    other.load_state_dict(state)
    assert other.state_dict().keys() == {"state", "param_groups"}
    before, own = copy.deepcopy(state), state["lookahead"]
    for damage, message in (
        *(
            (part, r"^the state has no part 'lookahead' of every, .*; allowed: a state_dict of L")
            for part in (None, {})
        ),
        ({**own, "slow": [None]}, r"^the state has slow weights of 1 parameters; allowed: 2$"),
        ({**own, "slow": None}, r"^the state has slow weights of None parameters; allowed: 2$"),
        ({**own, "slow": [None, "x"]}, r"^slow weights of the state are 'x'; allowed: \[.*\], as their parameter$"),
        ({**own, "every": 0}, r"^every of Lookahead is 0; allowed: 1 or more steps$"),
        ({**own, "decay": "x"}, r"^decay of Lookahead is 'x'; allowed: a number$"),
        ({**own, "steps": "x"}, r"^steps of Lookahead is 'x'; allowed: a whole number$"),
    ):
        with pytest.raises(UserError, match=message):
            optimizer.load_state_dict({**state, "lookahead": damage})
    assert str(optimizer.state_dict()) == str(before)


def test_alone_what_it_cannot_do_is_refused():
    _, inner = plain()
    for given, kind in ((torch.optim.SGD, "SGD"), (Lookahead(inner), "Lookahead")):
        with pytest.raises(UserError, match=f"^the optimizer of Lookahead is {kind}; allowed: another object of torch"):
            Lookahead(given)
    with pytest.raises(UserError, match=r"^every of Lookahead is 0; allowed: 1 or more steps$"):
        Lookahead(inner, every=0)
    with pytest.raises(UserError, match=r"^decay of Lookahead is 1\.0; allowed: 0 up to, not including, 1$"):
        Lookahead(inner, decay=1.0)
    optimizer = Lookahead(inner, np.int64(2), np.float32(0.5))
    assert (type(optimizer.every), type(optimizer.decay)) == (int, float)
