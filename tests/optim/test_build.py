"""Optimizers from outside the package, built from what their configuration says."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastcifar.costs.flops import count_recipe
from fastcifar.errors import UserError
from fastcifar.models.mlp import MLP
from fastcifar.optim import FlatModel, FlatOptimizer, TorchOptimizer, build_optimizer
from fastcifar.recipes import Recipe, Schedule
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers import OptimizerConfig, optimizer
from tests import kinds

BATCH, STEPS = 4, 3
NETWORK = MLPConfig(hidden=(5,))


@pytest.fixture(autouse=True)
def forget():
    with kinds.forgotten():
        yield


class SignSGD(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay, *, power=2.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "power": power})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(p.grad.sign() * p.grad.abs() ** group["power"], alpha=group["lr"])


def sign_config():
    @optimizer("sign", SignSGD)
    @dataclass(frozen=True)
    class SignConfig(OptimizerConfig):
        lr: float = 0.1
        weight_decay: float = 0.5
        power: float = 0.25

    return SignConfig


def recipe_of(config):
    return Recipe(network=NETWORK, batch_size=BATCH, optimizer=config, schedule=Schedule((0, 1), (1, 0.2)))


def summed_loss(model, step):
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(step)).double()
    return nn.functional.cross_entropy(model(images), torch.arange(BATCH), reduction="sum")


def test_a_class_of_torchs_form_is_given_all_fields_and_single_parameters():
    recipe = recipe_of(sign_config()(power=0.3))
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(MLP(NETWORK).double())
    flat, model = FlatModel(models[0], torch.float64), models[1]
    ours, theirs = build_optimizer(flat, recipe, STEPS), SignSGD(model.parameters(), 0.1, 0.5, power=0.3)
    assert isinstance(ours, TorchOptimizer)
    for step in range(STEPS):
        theirs.param_groups[0]["lr"] = 0.1 * recipe.schedule((step + 1) / STEPS)
        flat.backward(summed_loss(flat.model, step))
        ours.step()
        model.zero_grad()
        (summed_loss(model, step) / BATCH).backward()
        with torch.no_grad():
            theirs.step()
    for mine, expected in zip(flat.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)
    assert ours.learning_rate(0) == pytest.approx(0.1 * recipe.schedule(1 / STEPS))


def test_a_function_is_given_the_configuration_and_the_parameters():
    given = []

    def build(config, parameters):
        given.append((config, len(parameters)))
        return torch.optim.SGD(parameters, lr=config.lr)

    @optimizer("made", build)
    @dataclass(frozen=True)
    class MadeConfig(OptimizerConfig):
        lr: float = 0.3

    built = build_optimizer(FlatModel(MLP(NETWORK)), recipe_of(MadeConfig()), STEPS)
    assert isinstance(built, TorchOptimizer) and given == [(MadeConfig(), 4)]


def test_fields_that_its_class_does_not_take_are_refused_in_one_line():
    @optimizer("wrong", SignSGD)
    @dataclass(frozen=True)
    class WrongConfig(OptimizerConfig):
        momentum: float = 0.9

    with pytest.raises(UserError, match=r"^the optimizer SignSGD does not take the network's parameters: ") as said:
        build_optimizer(FlatModel(MLP(NETWORK)), recipe_of(WrongConfig()), STEPS)
    assert "momentum" in str(said.value)


def test_a_flat_optimizer_is_given_buffers_recipe_and_steps():
    class Halving(FlatOptimizer):
        @torch.no_grad()
        def step(self):
            for group in self.flat.groups:
                group.weights.mul_(self.config.factor)
                self.follow(group)
            self.finish_step()

    @optimizer("halving", Halving)
    @dataclass(frozen=True)
    class HalvingConfig(OptimizerConfig):
        factor: float = 0.5

    flat, recipe = FlatModel(MLP(NETWORK)), recipe_of(HalvingConfig(factor=0.25))
    before = flat.groups[0].weights.clone()
    built = build_optimizer(flat, recipe, STEPS)
    assert type(built) is Halving and built.config is recipe.optimizer and built.total_steps == STEPS
    built.step()
    assert torch.equal(flat.groups[0].weights, before * 0.25)


def test_one_that_is_given_takes_the_place_of_any_and_what_fields_both_have():
    given = []

    class Noting(torch.optim.SGD):
        def __init__(self, params, lr, momentum=0.7, weight_decay=0.6):
            given.append((lr, momentum, weight_decay))
            super().__init__(params, lr, momentum, weight_decay=weight_decay)

    build_optimizer(FlatModel(MLP(NETWORK)), recipe_of(sign_config()(lr=0.3)), STEPS, Noting)
    build_optimizer(FlatModel(MLP(NETWORK)), recipe_of(kinds.optimizer("sgd", lr=0.2, momentum=0.1)), STEPS, Noting)
    assert given == [(0.3, 0.7, 0.5), (0.2, 0.1, 5e-4)]


def test_its_step_is_counted():
    weights = 3072 * 5 + 5 + 5 * 10 + 10
    assert count_recipe(recipe_of(sign_config()())).optimizer.moved_bytes > 3 * 4 * weights
