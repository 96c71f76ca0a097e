"""The optimizers of torch.optim over flat buffers do what they do over a network's own parameters."""

import dataclasses
import inspect

import pytest
import torch

from fastcifar.models.mlp import MLP
from fastcifar.models.resnet import ResNet18
from fastcifar.optim import FlatModel, FlatSGD, TorchOptimizer, build_optimizer
from fastcifar.recipes import OPTIMIZERS, EMAConfig, Recipe, Schedule
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import TorchConfig
from tests import kinds

BATCH, STEPS, FACTOR = 4, 5, 2.0
RECIPE = Recipe(batch_size=BATCH, network=MLPConfig(hidden=(5,)), ema=EMAConfig(decay=0.9, every=2))


def recipe_of(name, **fields):
    return dataclasses.replace(RECIPE, optimizer=kinds.optimizer(name, lr=0.01, bias_lr_factor=FACTOR, **fields))


def make_model():
    torch.manual_seed(0)
    return MLP(RECIPE.network)


def summed_loss(model, step, dtype):
    images = torch.randn(BATCH, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(step))
    return torch.nn.functional.cross_entropy(model(images), torch.arange(BATCH), reduction="sum")


@pytest.mark.parametrize("name", [kind for kind, config in OPTIMIZERS.items() if issubclass(config, TorchConfig)])
def test_a_class_of_torch_steps_as_over_the_networks_own_parameters(name):
    recipe = recipe_of(name, momentum=0.8, weight_decay=0.02)
    flat, model = FlatModel(make_model(), torch.float64), make_model().double()
    optimizer = build_optimizer(flat, recipe, total_steps=STEPS)
    assert isinstance(optimizer, TorchOptimizer)
    cls = getattr(torch.optim, name)
    taken = inspect.signature(cls).parameters
    plain = []
    for part, factor in (("weight", 1), ("bias", FACTOR)):
        parameters = [parameter for key, parameter in model.named_parameters() if key.endswith(part)]
        settings = {"momentum": 0.8, "weight_decay": 0.02 / factor}
        plain.append((cls(parameters, lr=1.0, **{k: v for k, v in settings.items() if k in taken}), factor))
    for step in range(STEPS):
        model.zero_grad()
        flat.backward(summed_loss(flat.model, step, torch.float64))
        (summed_loss(model, step, torch.float64) / BATCH).backward()
        optimizer.step()
        for theirs, factor in plain:
            theirs.param_groups[0]["lr"] = 0.01 * recipe.schedule((step + 1) / STEPS) * factor
            theirs.step()
    start = dict(make_model().named_parameters())
    for (key, mine), (_, theirs) in zip(flat.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=key)
        assert not torch.equal(mine.float(), start[key]), key
    assert all(group.weights.count_nonzero() <= sum(p.numel() for p in group.parameters) for group in flat.groups)


def test_the_compute_copy_and_the_average_follow_the_master_weights():
    flat = FlatModel(make_model(), torch.bfloat16)
    optimizer = build_optimizer(flat, recipe_of("Adam"), total_steps=STEPS)
    average = flat.groups[0].weights.clone()
    for step in range(STEPS):
        flat.backward(summed_loss(flat.model, step, torch.bfloat16))
        optimizer.step()
        if step % 2 == 0:
            average += (1 - 0.9**2) * (flat.groups[0].weights - average)
    for group in flat.groups:
        assert torch.equal(group.compute, group.weights.to(group.compute.dtype))
    torch.testing.assert_close(flat.groups[0].ema, average)


def test_a_reset_forgets_steps_and_state():
    def train(flat, optimizer):
        for step in range(2):
            flat.backward(summed_loss(flat.model, step, torch.float32))
            optimizer.step()
        return flat.groups[0].weights.clone()

    flat = FlatModel(make_model())
    optimizer = build_optimizer(flat, recipe_of("Adam"), total_steps=STEPS)
    first = train(flat, optimizer)
    flat.load(make_model())
    optimizer.reset()
    assert torch.equal(train(flat, optimizer), first)


def test_sgd_without_momentum_is_plain_gradient_descent():
    """Two steps at a constant rate, of ours and of torch's, trained scales included; the rates are float32."""
    config = ResNet18Config(width=2)
    recipe = Recipe(
        batch_size=BATCH,
        network=config,
        optimizer=SGDConfig(lr=0.1, momentum=0, weight_decay=0, bias_lr_factor=1),
        schedule=Schedule((0, 1), (1, 1)),
        ema=EMAConfig(decay=0),
    )
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(ResNet18(config).double())
    flat, model = FlatModel(models[0], torch.float64), models[1]
    ours = build_optimizer(flat, recipe, total_steps=2)
    assert isinstance(ours, FlatSGD)
    theirs = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        theirs.zero_grad()
        flat.backward(summed_loss(flat.model, step, torch.float64))
        (summed_loss(model, step, torch.float64) / BATCH).backward()
        ours.step()
        theirs.step()
    for (key, mine), (_, expected) in zip(flat.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7, msg=key)
    assert [group.name for group in flat.groups] == ["weights", "scales", "biases"]
