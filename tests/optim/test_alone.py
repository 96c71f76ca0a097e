"""SGD, Muon and LARS alone are used as any of torch's optimizers."""

import io

import pytest
import torch
from torch import nn

import fastcifar
from fastcifar.errors import UserError
from fastcifar.optim import LARS, SGD
from fastcifar.optim.muon import Muon

STEPS = 6
ALONE = {
    "SGD": SGD,
    "SGD without Nesterov": lambda params, lr: SGD(params, lr, nesterov=False),
    "SGD without momentum": lambda params, lr: SGD(params, lr, momentum=0),
    "Muon": Muon,
    "LARS": LARS,
    "torch": torch.optim.RMSprop,
}


def weights():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (3, 2, 3, 3))]


def in_groups(build, parameters):
    one, two = parameters
    return build([{"params": [one]}, {"params": [two], "lr": 0.3}], lr=0.1)


def closure_of(parameters, optimizer, step):
    def closure():
        optimizer.zero_grad()
        random = torch.Generator().manual_seed(1 + step)
        loss = sum(((p - torch.randn(p.shape, generator=random)) ** 2).sum() for p in parameters)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("name", ALONE)
def test_ours_are_used_as_torchs(name):
    """Rates by group, a scheduler, a closure, and a state that goes on elsewhere with the same bits."""
    build, results = ALONE[name], []
    for is_resumed in (False, True):
        parameters = weights()
        optimizer = in_groups(build, parameters)
        assert isinstance(optimizer, torch.optim.Optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        for step in range(STEPS):
            if is_resumed and step == STEPS // 2:
                file = io.BytesIO()
                torch.save([optimizer.state_dict(), scheduler.state_dict(), parameters], file)
                file.seek(0)
                *states, saved = torch.load(file)
                parameters = [nn.Parameter(p.detach().clone()) for p in saved]
                optimizer = in_groups(build, parameters)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
            assert [group["lr"] for group in optimizer.param_groups] == [
                0.1 * 0.5 ** (step // 2),
                0.3 * 0.5 ** (step // 2),
            ]
            loss = optimizer.step(closure_of(parameters, optimizer, step))
            assert loss.requires_grad and loss.item() > 0
            scheduler.step()
        results.append(parameters)
    for one, other, start in zip(*results, weights(), strict=True):
        assert torch.equal(one, other) and not torch.equal(one, start)


@pytest.mark.parametrize("name", ALONE)
def test_a_groups_rate_is_what_a_step_is_made_at(name):
    ends = []
    for slow in (0.3, 0.0):
        parameters = weights()
        optimizer = in_groups(ALONE[name], parameters)
        optimizer.param_groups[1]["lr"] = slow
        optimizer.step(closure_of(parameters, optimizer, 0))
        ends.append(parameters)
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[1][1], weights()[1])
    assert not torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, True)])
def test_sgd_is_torchs(momentum, nesterov):
    mine, theirs = weights(), weights()
    optimizers = [
        SGD(mine, 0.1, momentum, weight_decay=0.01, nesterov=nesterov),
        torch.optim.SGD(theirs, 0.1, momentum, weight_decay=0.01, nesterov=nesterov and momentum > 0),
    ]
    for step in range(3):
        for parameters, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.step(closure_of(parameters, optimizer, step))
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    assert fastcifar.SGD is SGD and SGD(mine, lr=1.0).defaults["momentum"] == 0.9


def test_a_setting_of_sgd_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"^momentum of SGD is 1\.0; allowed: 0 up to, not including, 1$"):
        SGD(weights(), lr=0.1, momentum=1.0)
    with pytest.raises(UserError, match=r"^lr of SGD is -1; allowed: 0 or more$"):
        SGD(weights(), lr=-1)
