"""An optimizer of one's own over the master weights is that optimizer over the network's own parameters."""

import dataclasses
import functools
import warnings

import pytest
import torch
from torch import nn

from fastcifar.errors import UserError
from fastcifar.models.mlp import MLP
from fastcifar.models.resnet import ResNet18
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.optim import LARS, SGD, FlatModel, Lookahead, TorchOptimizer, build_optimizer
from fastcifar.optim.muon import Muon
from fastcifar.recipes import EMAConfig, Recipe, Schedule
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig

BATCH, STEPS, LR, DECAY = 4, 4, 0.02, 0.01
RECIPE = Recipe(
    network=ResNet18Config(width=2),
    batch_size=BATCH,
    optimizer=SGDConfig(lr=LR, momentum=0.8, weight_decay=DECAY),
    schedule=Schedule((0, 1), (1, 0.2)),
    ema=EMAConfig(decay=0.9, every=2),
)


def make_model(dtype=torch.float64):
    torch.manual_seed(0)
    return ResNet18(RECIPE.network).to(dtype)


def summed_loss(model, step):
    dtype = next(model.parameters()).dtype
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(step)).to(dtype)
    logits = model.train()(images.contiguous(memory_format=torch.channels_last))
    return nn.functional.cross_entropy(logits, torch.arange(BATCH), reduction="sum")


def adam_in_groups(parameters):
    wide, rest = ([p for p in parameters if (p.dim() > 1) == is_wide] for is_wide in (True, False))
    return torch.optim.AdamW([{"params": wide}, {"params": rest, "lr": 3 * LR, "weight_decay": 0}], lr=LR)


class Mixed(torch.optim.Optimizer):
    """Torch's form and no more: a rate, a momentum by a keyword, each tensor's shape read."""

    def __init__(self, params, *, lr, momentum=0.5):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad / p.grad.norm() * p.shape[0] ** group["momentum"], alpha=-group["lr"])


OWN = {
    "Adam": (torch.optim.Adam, lambda p: torch.optim.Adam(p, lr=LR, weight_decay=DECAY)),
    "SGD": (SGD, lambda p: SGD(p, lr=LR, momentum=0.8, weight_decay=DECAY)),
    "LARS": (LARS, lambda p: LARS(p, lr=LR, momentum=0.8, weight_decay=DECAY)),
    "Adafactor": (torch.optim.Adafactor, lambda p: torch.optim.Adafactor(p, lr=LR, weight_decay=DECAY)),
    "Mixed": (Mixed, lambda p: Mixed(p, lr=LR, momentum=0.8)),
    "partial": (functools.partial(Mixed, lr=LR), functools.partial(Mixed, lr=LR)),
    "groups": (adam_in_groups, adam_in_groups),
    "matrices": 2 * (lambda p: Muon([w for w in p if w.dim() > 1], lr=LR),),
}


@pytest.mark.parametrize("name", OWN)
def test_it_steps_as_over_the_networks_own_parameters(name):
    own, make = OWN[name]
    flat, model = FlatModel(make_model(), torch.float64), make_model()
    optimizer, theirs = build_optimizer(flat, RECIPE, STEPS, own), make(list(model.parameters()))
    assert isinstance(optimizer, TorchOptimizer) and optimizer.not_capturable
    first = [group["lr"] for group in theirs.param_groups]
    average = flat.groups[0].weights.clone()
    for step in range(STEPS):
        multiple = RECIPE.schedule((step + 1) / STEPS)
        for group, rate in zip(theirs.param_groups, first, strict=True):
            group["lr"] = rate * multiple
        flat.backward(summed_loss(flat.model, step))
        optimizer.step()
        assert optimizer.learning_rate(step) == pytest.approx(theirs.param_groups[0]["lr"])
        if step % 2 == 0:
            average += (1 - 0.9**2) * (flat.groups[0].weights - average)
        model.zero_grad()
        (summed_loss(model, step) / BATCH).backward()
        with torch.no_grad():
            theirs.step()
    start = dict(make_model().named_parameters())
    for (key, mine), (_, expected) in zip(flat.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-8, msg=key)
        assert torch.equal(mine, start[key]) == (name == "matrices" and mine.dim() < 2), key
    torch.testing.assert_close(flat.groups[0].ema, average)


def test_it_is_given_float32_parameters_in_order_and_the_mean_losss_gradient():
    given = []

    def own(parameters):
        given.append(parameters)
        return torch.optim.SGD(parameters, lr=LR)

    model = make_model(torch.float32)
    shapes = [(p.shape, p.stride()) for p in model.parameters()]
    flat = FlatModel(model, torch.bfloat16)
    optimizer = build_optimizer(flat, RECIPE, STEPS, own)
    flat.backward(summed_loss(flat.model.float(), 0).bfloat16())
    optimizer.step()
    assert all(type(p) is nn.Parameter and p.dtype == p.grad.dtype == torch.float32 for p in given[0])
    assert [(p.shape, p.stride()) for p in given[0]] == shapes
    assert not {p.untyped_storage().data_ptr() for p in given[0]} - {
        group.weights.untyped_storage().data_ptr() for group in flat.groups
    }


@pytest.mark.parametrize("ends", ["step", "skip", "finish"])
def test_a_training_with_lookahead_ends_on_its_slow_weights(ends):
    def own(parameters):
        made.append(Lookahead(torch.optim.SGD(parameters, lr=LR), every=3))
        return made[0]

    made, flat = [], FlatModel(make_model(), torch.float64)
    optimizer = build_optimizer(flat, RECIPE, STEPS + (ends == "finish"), own)
    for step in range(STEPS):
        flat.backward(summed_loss(flat.model, step))
        before = flat.groups[0].weights.clone()
        optimizer.skip() if ends == "skip" and step == STEPS - 1 else optimizer.step()
    if ends == "finish":
        assert not torch.equal(flat.groups[0].weights, before)
        optimizer.finish()
    assert all(torch.equal(parameter, slow) for parameter, slow in made[0]._slow.items())
    assert all(torch.equal(group.compute, group.weights) for group in flat.groups)


def test_what_is_frozen_has_no_gradient_and_stays():
    flat = FlatModel(SpeedrunNet())
    optimizer = build_optimizer(flat, RECIPE, STEPS, lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.5))
    bias = flat.model.whitening.bias
    for trains in (True, False):
        before = bias.detach().clone()
        bias.requires_grad_(trains)
        for group in flat.groups:
            for gradient in group.gradients:
                gradient.fill_(1.0)
        optimizer.step()
        assert torch.equal(bias, before) != trains


def test_a_reset_asks_for_a_new_one():
    flat, results = FlatModel(make_model(torch.float32)), []
    optimizer = build_optimizer(flat, RECIPE, STEPS, torch.optim.Adam)
    for _ in range(2):
        flat.load(make_model(torch.float32))
        optimizer.reset()
        for step in range(2):
            flat.backward(summed_loss(flat.model, step))
            optimizer.step()
        results.append(flat.groups[0].weights.clone())
    assert torch.equal(*results)


def stranger(parameters):
    return torch.optim.SGD([*parameters, nn.Parameter(torch.ones(1))], lr=LR)


class NoRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (3, "the optimizer is of type int; allowed: a class of torch's form, or a function of weights"),
        (
            torch.optim.SGD([torch.ones(1)]),
            "the optimizer is of type SGD; allowed: a class of torch's form, or a funct",
        ),
        (list, "the optimizer list gives list; allowed: a torch.optim.Optimizer"),
        (lambda p: SGD, "the optimizer <lambda> gives type; allowed: a torch.optim.Optimizer"),
        (lambda: None, "the optimizer <lambda> does not take the network's parameters: "),
        (NoRate, "the optimizer NoRate does not take the network's parameters: "),
        (lambda p: NoRate(p), "the optimizer <lambda> has no lr for a schedule; allowed: one in every param group"),
        (Muon, "the optimizer Muon does not take the network's parameters: a parameter of Muon has shape [5]; allowed"),
        (torch.optim.Muon, "the optimizer Muon does not take the network's parameters: "),
        (torch.optim.LBFGS, "the optimizer LBFGS asks for the loss again; allowed: one whose step needs no closure"),
        (stranger, "the optimizer stranger has parameters of its own; allowed: those that it is given"),
    ],
)
def test_what_is_no_optimizer_of_these_parameters_is_refused_in_one_line(own, message):
    flat = FlatModel(MLP(MLPConfig(hidden=(5,))))
    with pytest.raises(UserError) as refusal:
        build_optimizer(flat, RECIPE, STEPS, own)
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("own", "section", "message"),
    [
        (
            torch.optim.Adam,
            SGDConfig(),
            "Adam trains at the rate 1.0, which the recipe has for sgd; optimizer.lr sets another, by default 0.001",
        ),
        (
            LARS,
            SGDConfig(lr=0.001),  # a named recipe's
            "LARS trains at the rate 0.001, which the recipe has for sgd; optimizer.lr sets another",
        ),
        (torch.optim.Adam, SGDConfig(lr=0.003), None),  # given for this training
        (torch.optim.Adam, SGDConfig(lr=0.001), None),
        (torch.optim.AdamW, AdamConfig(), None),
        (SGD, SGDConfig(), None),
        (lambda parameters: torch.optim.Adam(parameters, lr=0.01), SGDConfig(), None),
    ],
)
def test_a_rate_of_another_optimizers_is_warned_of(own, section, message):
    recipe = dataclasses.replace(RECIPE, optimizer=section)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = build_optimizer(FlatModel(make_model()), recipe, STEPS, own)
        optimizer.reset()
    assert [str(one.message) for one in caught] == [message] * (message is not None)
