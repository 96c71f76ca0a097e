"""The training modes of modules, which are left or brought back as they were."""

import pytest
import torch
from torch import nn

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import own_network
from fastcifar.models.modes import in_evaluation, modes
from fastcifar.recipes import AverageConfig, change
from fastcifar.training import Trainer, estimate_statistics, evaluate
from tests.small import MLP

DATA = make_synthetic(64, 20)


class Frozen(nn.Sequential):
    """A network with a frozen batch norm, in evaluation mode from the start, and one that trains."""

    def __init__(self, classes):
        super().__init__(
            nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(classes)
        )
        self(torch.zeros(2, 3, 32, 32))
        self[1].running_mean.fill_(0.25)
        self[1].eval()


class Failing(nn.Module):
    def forward(self, x):
        raise ArithmeticError


def training_modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_an_evaluation_brings_back_each_mode_also_after_an_error(is_training, fails):
    model = Frozen(10).train(is_training)
    model[1].train(not is_training)
    if fails:
        model[3] = Failing()
    before = training_modes(model)
    try:
        evaluate(model, DATA.test, mean=DATA.mean, std=DATA.std)
        assert not fails
    except ArithmeticError:
        assert fails
    assert training_modes(model) == before


def test_parts_that_do_something_when_modes_change_are_told():
    heard = []

    class Merging(nn.Module):
        def train(self, mode=True):
            heard.append(mode)
            return super().train(mode)

    model = nn.Sequential(Merging(), nn.Linear(2, 2))
    with in_evaluation(model):
        assert not any(training_modes(model))
    assert heard == [False, True] and modes(model) == [(module, True) for module in model.modules()]


def test_the_trial_of_a_module_leaves_its_frozen_parts():
    network = own_network(Frozen, 10, DATA.mean, DATA.std, (32,))
    assert [module.training for module in network.module] == [True, False, True, True, True]
    given = own_network(lambda classes: Frozen(classes).eval(), 10, DATA.mean, DATA.std, (32,))
    assert all(training_modes(given))  # evaluation mode as a whole is not meant to last
    with pytest.raises(UserError, match="the model gives"):
        own_network(lambda classes: Frozen(7), 10, DATA.mean, DATA.std, (32,))


@pytest.mark.parametrize("average", [0, 1])
def test_a_frozen_norm_stays_frozen_through_a_training(average):
    recipe = change(
        MLP, {"epochs": 2, "optimizer.lr": 0.1, "ema.decay": 0.0, "average": AverageConfig(epochs=average, images=32)}
    )
    trainer = Trainer(recipe, DATA, "cpu", model=Frozen)
    seen = []
    trainer.model[1].register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    run = trainer.run(1, evaluate_at_start=True)
    assert seen and not any(seen) and trainer.model[2].training
    assert torch.equal(run.state["1.running_mean"], torch.full((4,), 0.25))
    assert not torch.equal(run.state["2.running_mean"], torch.zeros(4))


def test_estimated_statistics_are_those_of_norms_that_train_or_of_all_in_evaluation_mode():
    for is_training in (True, False):
        network = own_network(Frozen, 10, DATA.mean, DATA.std, (32,)).train(is_training)
        network.module[1].eval()
        before = training_modes(network)
        estimate_statistics(network, DATA.train, 32, 16, torch.float32)
        assert training_modes(network) == before
        assert torch.equal(network.module[1].running_mean, torch.full((4,), 0.25)) == is_training
        assert not torch.equal(network.module[2].running_mean, torch.zeros(4))
