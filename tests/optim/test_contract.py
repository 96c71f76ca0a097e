"""The contract of torch's optimizers: what torch.optim.SGD, the control, does around its formula, ours do too.
Settings, steps, and what drives them."""

import contextlib
import copy
import inspect
import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from fastcifar.errors import UserError
from fastcifar.optim.muon import Muon
from tests.alone import MAKERS, after, fill, flat, parameters_of, same, train, weights

ALONE = ["SGD", "LARS", "Muon"]


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_rate_may_be_a_tensor_of_one_element(make, shape):
    lr, given = torch.full(shape, 0.1, dtype=torch.float64), 0.1
    optimizer = make([{"params": weights()[:1]}, {"params": weights(((3, 4),), seed=1)}], lr=lr)
    expected = make([{"params": weights()[:1]}, {"params": weights(((3, 4),), seed=1)}], lr=given)
    for one, other in zip(after(optimizer), after(expected), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(lr, torch.full_like(lr, given))  # the caller's tensor is read alone
    scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    train(optimizer, range(1))
    scheduler.step()
    rate = optimizer.param_groups[0]["lr"]
    assert isinstance(rate, torch.Tensor) and float(rate) == pytest.approx(given / 2)


def test_a_rate_of_several_elements_is_refused(make):
    with pytest.raises(ValueError, match="lr"):
        make(weights(), lr=torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("setting", ["lr", "momentum", "weight_decay"])
@pytest.mark.parametrize("name", ALONE)
def test_a_setting_below_0_is_refused(name, setting):
    values = [-0.1, math.nan, *([torch.tensor(-0.1)] if setting == "lr" else [])]
    for value in values:
        with pytest.raises(UserError, match=f"^{setting} of {name} is .*; allowed: 0 "):
            MAKERS[name](weights(), **{"lr": 0.1, setting: value})


def test_a_refused_group_changes_nothing(make):
    one, two, three = weights(((4, 3), (3, 5), (2, 2)))
    optimizer = make([one], lr=0.1)
    for refused in ({"params": [two, one]}, {"params": {two, three}}, {"params": [two * 1]}, {"params": "two"}):
        with pytest.raises((ValueError, TypeError)):
            optimizer.add_param_group(refused)
        assert [group["params"] for group in optimizer.param_groups] == [[one]]
    optimizer.add_param_group({"params": two, "lr": 0.0})
    optimizer.add_param_group({"params": iter([three])})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1]
    kept = {name for name in optimizer.defaults if name != "differentiable"}
    assert all(kept <= group.keys() for group in optimizer.param_groups)
    before = parameters_of(optimizer)
    changed = [not torch.equal(*pair) for pair in zip(before, after(optimizer), strict=True)]
    assert changed == [True, False, True]


def test_parameters_may_have_names(make):
    if "param_names" not in inspect.getsource(torch.optim.Optimizer):
        pytest.skip("this torch has none")
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    optimizer = make(model.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "1.weight"]
    train(optimizer)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["0.weight", "1.weight"]


def test_the_words_for_it_name_the_class_and_every_setting(make):
    optimizer = make(weights(), lr=0.125)
    text = repr(optimizer)
    assert text.startswith(f"{type(optimizer).__name__} (")
    assert all(name in text for name in optimizer.defaults) and "0.125" in text


@pytest.mark.parametrize("name", ALONE)
def test_maximizing_is_minimizing_the_negative(name):
    up, down = (MAKERS[name](weights(), lr=0.1, weight_decay=0.0, maximize=maximize) for maximize in (True, False))
    for step in range(3):
        train(up, [step])
        fill(down.param_groups[0]["params"], step)
        for parameter in down.param_groups[0]["params"]:
            parameter.grad.neg_()
        down.step()
    for one, other in zip(parameters_of(up), parameters_of(down), strict=True):
        torch.testing.assert_close(one, other)


def test_the_loss_of_a_closure_is_returned_and_has_its_gradients(make):
    (parameter,) = weights(((3, 4),))
    optimizer = make([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    before = parameter.detach().clone()
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert torch.equal(loss, before.square().sum()) and not torch.equal(parameter, before)
    assert optimizer.step() is None


def test_gradients_are_left_as_they_are_and_cleared_when_asked(make):
    optimizer = make(weights(), lr=0.1)
    fill(optimizer.param_groups[0]["params"], 0)
    gradients = [parameter.grad for parameter in optimizer.param_groups[0]["params"]]
    before = [gradient.clone() for gradient in gradients]
    optimizer.step()
    assert same(before, gradients)
    optimizer.zero_grad(set_to_none=False)
    assert not any(gradient.any() for gradient in gradients)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in optimizer.param_groups[0]["params"])


def test_parameters_without_a_gradient_or_an_element_are_passed_over(make):
    used, unused, empty = weights(((4, 3), (3, 5), (0, 3)))
    optimizer, alone = make([used, unused, empty], lr=0.1), make(weights(((4, 3),)), lr=0.1)
    before = unused.detach().clone()
    for step in range(4):
        fill([used], step)
        empty.grad = torch.zeros(0, 3)
        optimizer.step()
    assert same([used.detach()], after(alone)) and torch.equal(unused, before)
    later = unused.detach().clone()
    fill([unused], 5)  # one that trains from now on
    optimizer.step()
    assert not torch.equal(unused, later)


@pytest.mark.parametrize("name", [name for name in MAKERS if "Muon" not in name])
def test_parameters_of_no_dimension_are_trained(name):
    optimizer = MAKERS[name](weights(((), (1,))), lr=torch.tensor([0.1], dtype=torch.float64))
    before = parameters_of(optimizer)
    assert not any(torch.equal(*pair) for pair in zip(before, after(optimizer), strict=True))
    assert [parameter.shape for parameter in parameters_of(optimizer)] == [(), (1,)]


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "another default device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("around", AROUND)
def test_what_is_set_around_a_step_makes_no_difference(make, around):
    optimizer, alone = make(weights(), lr=0.1), make(weights(), lr=0.1)
    for step in range(4):
        fill(optimizer.param_groups[0]["params"], step)
        with AROUND[around]():
            optimizer.step()
    assert same(parameters_of(optimizer), after(alone))


LAYOUTS = {
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "a part of a tensor": lambda x: torch.zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 2, 3, 3), (40, 2, 3, 3)])
def test_the_layout_in_memory_makes_no_difference(make, layout, shape):
    plain = weights((shape,))
    ours = nn.Parameter(LAYOUTS[layout](plain[0].detach()))
    assert not ours.is_contiguous()
    mine, theirs = make([ours], lr=0.1), make(plain, lr=0.1)
    strides = ours.stride()
    for one, other in zip(after(mine), after(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert ours.stride() == strides


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [name for name in MAKERS if "Adam" not in name])  # it squares gradients in their type
def test_other_types_are_near_float32(name, dtype):
    for scale in (1.0, 1e-4, 3000.0):  # the last one's norm is beyond float16
        ends = []
        for kind in (dtype, torch.float32):
            parameters = [nn.Parameter(w.detach() * scale) for w in weights(((32, 32), (6, 2, 3, 3)), dtype)]
            parameters = [nn.Parameter(w.detach().to(kind)) for w in parameters]
            optimizer = MAKERS[name](parameters, lr=0.05, **({"norm_every": 2} if name == "Muon" else {}))
            for step in range(3):
                fill(parameters, step)
                for parameter in parameters:
                    parameter.grad.mul_(scale)
                optimizer.step()
            assert all(parameter.dtype == kind for parameter in parameters)
            ends.append([parameter.detach().float() / scale for parameter in parameters])
        for one, other in zip(*ends, strict=True):
            assert (one - other).norm() < 0.06 * other.norm()


@pytest.mark.parametrize("name", ["LARS", "Muon"])
def test_sparse_gradients_are_refused_before_anything_changes(name):
    dense, sparse = weights(((4, 3), (5, 3)))
    optimizer = MAKERS[name]([dense, sparse], lr=0.1)
    fill([dense, sparse], 0)
    sparse.grad = sparse.grad.to_sparse()
    before = parameters_of(optimizer)
    with pytest.raises(RuntimeError, match=f"^{name} does not support sparse gradients"):
        optimizer.step()
    assert same(before, parameters_of(optimizer)) and not optimizer.state


@pytest.mark.parametrize("name", [name for name in MAKERS if "Muon" not in name])
def test_complex_parameters_are_trained_as_pairs_of_numbers(name):
    ends = []
    for is_complex in (True, False):
        generator = torch.Generator().manual_seed(0)
        real = torch.randn(4, 3, 2, generator=generator)
        parameter = nn.Parameter(torch.view_as_complex(real) if is_complex else real)
        optimizer = MAKERS[name]([parameter], lr=0.1, weight_decay=0.01)
        for _ in range(4):
            gradient = torch.randn(4, 3, 2, generator=generator)
            parameter.grad = torch.view_as_complex(gradient) if is_complex else gradient
            optimizer.step()
        ends.append(torch.view_as_real(parameter.detach()) if is_complex else parameter.detach())
    torch.testing.assert_close(*ends)


def test_muon_refuses_complex_parameters_as_torchs_does():
    with pytest.raises(UserError, match=r"^a parameter of Muon is torch\.complex64; allowed: a real floating type$"):
        Muon([nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))], lr=0.1)


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, base_momentum=0.5, max_momentum=0.8),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8, base_momentum=0.5, max_momentum=0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=3),
}


@pytest.mark.parametrize("is_tensor", [False, True])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_set_what_the_next_step_reads(make, kind, is_tensor):
    """The control has the same settings after each step; the weights are those of settings put there by hand."""
    rates = [torch.tensor(0.1, dtype=torch.float64) if is_tensor else 0.1 for _ in range(3)]
    optimizer, by_hand = make(weights(), lr=rates[0]), make(weights(), lr=rates[1])
    key = "betas" if "betas" in optimizer.defaults else "momentum"
    control = torch.optim.Adam if key == "betas" else torch.optim.SGD
    control = control(weights(), lr=rates[2], **{key: optimizer.defaults[key]})
    schedulers = [SCHEDULERS[kind](one) for one in (optimizer, control)]
    for step in range(6):
        mine, theirs = optimizer.param_groups[0], control.param_groups[0]
        assert (mine["lr"], mine[key]) == (theirs["lr"], theirs[key])
        by_hand.param_groups[0].update({"lr": float(mine["lr"]), key: mine[key]})
        for one in (optimizer, by_hand, control):
            train(one, [step])
        for scheduler in schedulers:
            scheduler.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
    for one, other in zip(parameters_of(optimizer), parameters_of(by_hand), strict=True):
        torch.testing.assert_close(one, other)


def test_a_scheduler_that_steps_first_is_warned_of_once_and_otherwise_never(make):
    for steps_first, count in ((False, 1), (True, 0)):
        optimizer = make(weights(), lr=0.1)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(3):
                if steps_first or step:
                    train(optimizer, [step])
                scheduler.step()
        assert len([one for one in caught if "lr_scheduler.step()" in str(one.message)]) == count


def test_a_step_with_infinite_gradients_is_left_out_under_loss_scaling(make):
    optimizer, plain = make(weights(), lr=0.1), make(weights(), lr=0.1)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**8, growth_interval=100)
    for step in range(5):
        before, state = parameters_of(optimizer), flat(copy.deepcopy(optimizer.state_dict()))
        parameters = optimizer.param_groups[0]["params"]
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        targets = [torch.randn(parameter.shape, generator=generator) for parameter in parameters]
        loss = sum(((p - t) ** 2).sum() for p, t in zip(parameters, targets, strict=True))
        scaler.scale(loss * (math.inf if step == 2 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            assert same(before, parameters_of(optimizer)) and flat(optimizer.state_dict()) == state
            continue
        for parameter, target in zip(plain.param_groups[0]["params"], targets, strict=True):
            parameter.grad = 2 * (parameter.detach() - target)
        plain.step()
    assert scaler.get_scale() == 2.0**7
    for one, other in zip(parameters_of(optimizer), parameters_of(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
