"""LARS over flat buffers and alone is its paper's formula, written here once more."""

import dataclasses

import pytest
import torch

from fastcifar.errors import UserError
from fastcifar.models.resnet import ResNet18
from fastcifar.optim import LARS, FlatLARS, FlatModel, build_optimizer
from fastcifar.recipes import EMAConfig, Recipe, Schedule
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.optimizers.lars import LARSConfig

BATCH, STEPS = 4, 3
RECIPE = Recipe(
    batch_size=BATCH,
    network=ResNet18Config(width=2),
    optimizer=LARSConfig(5.0, 0.8, weight_decay=0.02, bias_lr=0.3, sgd_momentum=0.7, trust_coefficient=0.01),
    schedule=Schedule((0, 1), (1, 0)),
    ema=EMAConfig(decay=0.9, every=2),
)


def make_model():
    torch.manual_seed(0)
    return ResNet18(RECIPE.network)


def fill_gradients(model, step, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad.copy_(scale * noise)


def trust(w, slope, decay, coefficient=0.01):
    return coefficient * w.norm() / (slope + decay * w.norm())


@pytest.mark.parametrize("smoothing", [0.0, 0.6])
def test_steps_over_flat_buffers_are_the_formula_for_the_mean_loss(smoothing):
    flat, model = FlatModel(make_model(), torch.float64), make_model().double()
    recipe = dataclasses.replace(RECIPE, optimizer=dataclasses.replace(RECIPE.optimizer, norm_smoothing=smoothing))
    optimizer, slopes = build_optimizer(flat, recipe, STEPS), {}
    assert isinstance(optimizer, FlatLARS) and not optimizer.not_capturable
    velocity = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    average = flat.groups[0].weights.clone()
    for step in range(STEPS):
        fill_gradients(flat.model, step)
        fill_gradients(model, step, scale=1 / BATCH)
        optimizer.step()
        if step % 2 == 0:
            average += (1 - 0.9**2) * (flat.groups[0].weights - average)
        scale = 1 - (step + 1) / STEPS
        for name, w in model.named_parameters():
            v, g = velocity[name], w.grad
            if w.dim() > 1:
                slopes[name] = smoothing * slopes.get(name, g.norm()) + (1 - smoothing) * g.norm()
                v.copy_(0.8 * v + 5.0 * scale * trust(w.data, slopes[name], 0.02) * (g + 0.02 * w.data))
                w.data -= v
            else:
                v.copy_(0.7 * v + g)
                w.data -= 0.3 * scale * (g + 0.7 * v)
    for (name, mine), (_, expected) in zip(flat.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-8, msg=name)
    torch.testing.assert_close(flat.groups[0].ema, average)


def test_alone_it_is_the_formula_without_trust_and_decay_for_vectors():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in [(4, 5), (3, 2, 3, 3), (6,)]]
    unused = torch.nn.Parameter(torch.ones(2))
    expected, velocities = [p.detach().clone() for p in parameters], [torch.zeros_like(p) for p in parameters]
    optimizer = LARS([*parameters, unused], lr=2.0, momentum=0.9, weight_decay=0.1, trust_coefficient=0.01)
    for _ in range(3):
        optimizer.step(lambda: sum((p * torch.randn_like(p)).sum() for p in parameters).backward())
        for w, v, parameter in zip(expected, velocities, parameters, strict=True):
            g, decay = parameter.grad, 0.1 if w.dim() > 1 else 0.0
            v.mul_(0.9).add_(2.0 * (trust(w, g.norm(), decay) if w.dim() > 1 else 1) * (g + decay * w))
            w -= v
        optimizer.zero_grad()
    for w, parameter in zip(expected, parameters, strict=True):
        torch.testing.assert_close(parameter.data, w)
    assert torch.equal(unused, torch.ones(2))


@pytest.mark.parametrize(("weight", "gradient"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_norm_of_zero_leaves_the_plain_rate(weight, gradient):
    parameter = torch.nn.Parameter(torch.full((2, 2), weight))
    parameter.grad = torch.full((2, 2), gradient)
    LARS([parameter], lr=0.5).step()
    assert torch.equal(parameter, torch.full((2, 2), weight - 0.5 * gradient))


def test_the_average_of_a_gradients_norm_begins_with_the_first_one_that_is_not_zero():
    """As behind a branch that starts at zero: it would be a share of the norm otherwise, and the rate too high."""
    flat = FlatModel(make_model(), torch.float64)
    config = dataclasses.replace(RECIPE.optimizer, norm_smoothing=0.75)
    optimizer = build_optimizer(flat, dataclasses.replace(RECIPE, optimizer=config), STEPS)
    first = flat.groups[0].parameters[0]
    for size, expected in ((0, 0.0), (1, 1.0), (0, 0.75), (3, 0.75**2 + 0.75)):
        first.grad.zero_()[0, 0, 0, 0] = size * BATCH
        optimizer.step()
        assert optimizer.state_dict()["gradient_norms.0"][0].item() == pytest.approx(expected)


def test_a_setting_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"^momentum of LARS is -0\.1; allowed: 0 up to, not including, 1$"):
        LARS([torch.ones(2, 2)], lr=1.0, momentum=-0.1)
    with pytest.raises(UserError, match=r"^lr of LARS is nan; allowed: 0 or more$"):
        LARS([torch.ones(2, 2)], lr=float("nan"))
    with pytest.raises(UserError, match=r"^optimizer\.trust_coefficient is 0; allowed: above 0$"):
        dataclasses.replace(RECIPE.optimizer, trust_coefficient=0)
    with pytest.raises(UserError, match=r"^optimizer\.norm_smoothing is 1\.0; allowed: 0 up to, not including, 1$"):
        dataclasses.replace(RECIPE.optimizer, norm_smoothing=1.0)
