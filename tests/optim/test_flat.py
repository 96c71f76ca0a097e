"""Flat buffers are the network's parameters, and SGD over them is Page's formula."""

import dataclasses

import pytest
import torch
from torch import nn

from fastcifar.models.davidnet import DavidNet
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.optim import FlatModel, FlatSGD
from fastcifar.recipes import EMAConfig, Recipe
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from tests.small import NARROW

RECIPE = Recipe(network=NARROW, batch_size=8)


def make_model(config: DavidNetConfig = NARROW, seed: int = 0) -> DavidNet:
    torch.manual_seed(seed)
    return DavidNet(config)


def loss_of(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    return model.train()(images.contiguous(memory_format=torch.channels_last)).float().square().sum()


def test_flattening_keeps_every_value():
    before, model = make_model().state_dict(), make_model()
    FlatModel(model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_and_gradients_are_channels_last_views_of_the_buffers(dtype):
    flat = FlatModel(make_model(), dtype)
    flat.backward(loss_of(flat.model, dtype))
    for group in flat.groups:
        assert group.grads.abs().sum() > 0
        for tensor, buffer in [(p, group.compute) for p in group.parameters] + [
            (p.grad, group.grads) for p in group.parameters
        ]:
            assert tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
            assert tensor.data_ptr() % 64 == buffer.data_ptr() % 64
            assert tensor.dim() != 4 or tensor.is_contiguous(memory_format=torch.channels_last)
    assert {group.name: group.compute.dtype for group in flat.groups} == {"weights": dtype, "biases": torch.float32}
    assert all(group.weights.dtype == torch.float32 for group in flat.groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backward_pass_overwrites_the_gradients_with_autograds(dtype):
    flat, model = FlatModel(make_model(), dtype), make_model()
    for parameter, same in zip(model.parameters(), flat.model.parameters(), strict=True):
        parameter.data = same.data.clone(memory_format=torch.preserve_format)
    for group in flat.groups:
        for parameter in group.parameters:
            parameter.grad.fill_(torch.nan)  # whatever was there before
    flat.backward(loss_of(flat.model, dtype))
    loss_of(model, dtype).backward()
    for mine, theirs in zip(flat.model.parameters(), model.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            assert torch.equal(mine.grad, theirs.grad)
    covered = sum(parameter.numel() for group in flat.groups for parameter in group.parameters)
    assert sum(group.grads.count_nonzero() for group in flat.groups) <= covered


@pytest.mark.parametrize("gradients", [torch.enable_grad, torch.no_grad])
def test_a_backward_pass_from_a_gradient_of_the_outputs(gradients):
    flat = FlatModel(make_model())
    loss = loss_of(flat.model)
    flat.backward(loss)
    expected = [group.grads.clone() for group in flat.groups]
    outputs = loss_of(flat.model).expand(2)
    with gradients():
        flat.backward(outputs, torch.tensor([0.25, 0.75]))
    for group, grads in zip(flat.groups, expected, strict=True):
        torch.testing.assert_close(group.grads, grads)
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        flat.backward(outputs, torch.ones(3, 2))


def test_trained_scales_are_a_group_of_their_own():
    flat = FlatModel(make_model(dataclasses.replace(NARROW, freeze_scale=False)))
    assert {group.name for group in flat.groups} == {"weights", "scales", "biases"}


def test_load_starts_afresh_from_another_network():
    flat, other = (FlatModel(make_model(seed=seed), torch.bfloat16) for seed in (0, 1))
    optimizer = FlatSGD(flat, RECIPE, total_steps=4)
    flat.backward(loss_of(flat.model, torch.bfloat16))
    optimizer.step()
    flat.load(make_model(seed=1))
    for group, source in zip(flat.groups, other.groups, strict=True):
        for name in ("weights", "compute", "ema", "velocity", "grads"):
            expected = torch.zeros_like(source.weights) if name in ("velocity", "grads") else source.weights
            torch.testing.assert_close(getattr(group, name), expected.to(getattr(group, name).dtype), rtol=0, atol=0)
    torch.testing.assert_close(flat.statistics, other.statistics)


def test_state_dict_is_the_master_weights():
    flat = FlatModel(make_model(), torch.bfloat16)
    torch.testing.assert_close(flat.state_dict()["classifier.weight"], make_model().classifier.weight.data)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in flat.state_dict().values())


@pytest.mark.parametrize("steps", [1, 4])
def test_sgd_is_pages_formula_for_the_summed_loss(steps):
    """The closed form, in float64: v <- mu v - lr g; w <- w - lr g + mu v, rates over the batch size, decay times
    it."""
    recipe = dataclasses.replace(RECIPE, optimizer=SGDConfig(lr=0.5, weight_decay=0.01))
    flat, model = FlatModel(make_model(), torch.float64), make_model().double()
    optimizer = FlatSGD(flat, recipe, total_steps=10)
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for step in range(1, steps + 1):
        model.zero_grad()
        flat.backward(loss_of(flat.model, torch.float64))
        loss_of(model, torch.float64).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            factor = 64 if name.endswith("bias") else 1
            rate = 0.5 * recipe.schedule(step / 10) / 8 * factor
            change = rate * (parameter.grad + 0.01 * 8 / factor * parameter.data)
            velocity[name] = 0.9 * velocity[name] - change
            parameter.data += -change + 0.9 * velocity[name]
    for (name, mine), (_, expected) in zip(flat.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-8, msg=name)


def test_the_average_moves_after_the_first_and_every_fifth_step_with_statistics():
    recipe = dataclasses.replace(RECIPE, ema=EMAConfig(decay=0.9, every=5))
    flat = FlatModel(make_model())
    optimizer = FlatSGD(flat, recipe, total_steps=12)
    weights, statistics = flat.groups[0].weights.clone(), flat.statistics.clone()
    for step in range(12):
        flat.backward(loss_of(flat.model))
        optimizer.step()
        if step % 5 == 0:
            weights += (1 - 0.9**5) * (flat.groups[0].weights - weights)
            statistics += (1 - 0.9**5) * (flat.statistics - statistics)
    torch.testing.assert_close(flat.groups[0].ema, weights)
    torch.testing.assert_close(flat.statistics_ema, statistics)


def test_load_average_takes_the_average_or_the_last_weights():
    flat, evaluated = FlatModel(make_model()), FlatModel(make_model(seed=1))
    optimizer = FlatSGD(flat, RECIPE, total_steps=12)
    flat.backward(loss_of(flat.model))
    optimizer.step()
    optimizer.count.fill_(1)
    optimizer.step()
    evaluated.load_average(flat)
    torch.testing.assert_close(evaluated.groups[0].compute, flat.groups[0].ema)
    torch.testing.assert_close(evaluated.statistics, flat.statistics_ema)
    evaluated.load_average(flat, averaged=False)
    torch.testing.assert_close(evaluated.groups[0].compute, flat.groups[0].weights)
    assert not torch.equal(flat.groups[0].weights, flat.groups[0].ema)


def test_a_divided_backward_pass_gives_the_same_gradients_the_upper_ones_first():
    def make_flat():
        torch.manual_seed(0)
        return FlatModel(SpeedrunNet(SpeedrunConfig(widths=(4, 8, 8))), torch.float32)

    whole, divided = make_flat(), make_flat()
    divided.divide()
    whole.backward(loss_of(whole.model))
    at_half = []

    def halfway(copy):
        copy()
        at_half.extend(group.grads.clone() for group in divided.groups)

    divided.backward(loss_of(divided.model), halfway=halfway)
    names = {id(parameter): name for name, parameter in divided.model.named_parameters()}
    for mine, expected, half in zip(divided.groups, whole.groups, at_half, strict=True):
        assert torch.equal(mine.grads, expected.grads)
        for parameter, span in zip(mine.parameters, mine.spans, strict=True):
            below = names[id(parameter)].startswith(("whitening", "blocks.0."))
            assert divided.is_above(parameter) == (not below)
            assert torch.equal(half[span], torch.zeros_like(half[span]) if below else mine.grads[span])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_of_any_size_and_layout_reach_the_buffers(layout):
    shapes = [(90, 8, 3, 3), (70, 360), (9000,), (3, 4200), (1,)]
    weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)
    flat = FlatModel(weights)
    expected = [torch.randn(shape) for shape in shapes]
    expected[0] = expected[0].contiguous(memory_format=layout)
    flat.backward(sum((weight * factor).sum() for weight, factor in zip(weights, expected, strict=True)))
    assert all(torch.equal(weight.grad, grad) for weight, grad in zip(weights, expected, strict=True))
    assert flat.groups[0].grads.count_nonzero() + flat.groups[1].grads.count_nonzero() == sum(
        map(torch.numel, expected)
    )


def test_a_network_without_a_first_block_is_not_divided():
    flat = FlatModel(make_model())
    flat.divide()
    called = []
    flat.backward(loss_of(flat.model), halfway=called.append)
    assert not called and not any(flat.is_above(parameter) for parameter in flat.model.parameters())
