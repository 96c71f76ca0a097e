"""Muon over flat buffers and alone does what its formulas say, written here once more in plain torch."""

import copy
import dataclasses
import math

import pytest
import torch

from fastcifar.errors import UserError
from fastcifar.models.davidnet import DavidNet
from fastcifar.optim import FlatModel, build_optimizer, polar_express
from fastcifar.optim.muon import FlatMuon, Muon, normalizing_steps
from fastcifar.recipes import EMAConfig, Recipe, Schedule
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from tests import small

BATCH, STEPS = 8, 5
NARROW = dataclasses.replace(small.NARROW, freeze_scale=False)
OPTIM = MuonConfig(
    lr=0.24,
    momentum=0.6,
    weight_decay=2e-6 * BATCH,
    bias_lr=0.053 * BATCH,
    head_lr=0.67 * BATCH,
    sgd_momentum=0.85,
)
RECIPE = Recipe(
    network=NARROW,
    batch_size=BATCH,
    optimizer=OPTIM,
    schedule=Schedule((0, 1), (1, 0)),
    ema=EMAConfig(decay=0.9, every=2),
)


def make_model(seed=0):
    torch.manual_seed(seed)
    return DavidNet(NARROW)


def fill_gradients(model, step):
    """Set random gradients of the summed loss, the same for equal `step`."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad.copy_(noise)


JORDAN = ((3.4445, -4.7750, 2.0315),)
POLAR = [polar_express(3)[place : place + 3] for place in (0, 3, 6)]


def reference_orthogonalized(matrix, steps=3, coefficients=JORDAN):
    """Iterate Newton-Schulz for one matrix by its definition: a X + b (X X') X + c (X X')^2 X."""
    x = matrix.double() / matrix.double().norm()
    for step in range(steps):
        a, b, c = coefficients[step % len(coefficients)]
        x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
    return x


class AirbenchReference:
    """airbench94_muon's two optimizers from their formulas: rates for the summed loss, decay wd / rate, coupled.
    `evened`: with NorMuon's normalization, of momentum 0.8."""

    def __init__(self, model, normalize=lambda step: True, coefficients=JORDAN, evened=False):
        self.model, self.normalize, self.coefficients, self.evened = model, normalize, coefficients, evened
        self.squares = {name: torch.zeros(len(p), 1) for name, p in model.named_parameters()}
        self.buffers = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def step(self, step, scale):
        for name, w in self.model.named_parameters():
            if not w.requires_grad:
                continue
            v, g = self.buffers[name], w.grad
            if w.dim() == 4:
                v.copy_(0.6 * v + g)
                if self.normalize(step):
                    w.data *= len(w) ** 0.5 / w.data.norm()
                u = reference_orthogonalized((g + 0.6 * v).flatten(1), coefficients=self.coefficients)
                if self.evened:
                    self.squares[name] = 0.8 * self.squares[name] + 0.2 * (u**2).mean(1, keepdim=True)
                    even = u / self.squares[name].sqrt()
                    u = even * u.norm() / even.norm()
                w.data -= 0.24 * scale * u.view_as(w)
            else:
                rate = 0.67 if w.dim() == 2 else 0.053
                g = g + 2e-6 * BATCH / rate * w.data
                v.copy_(0.85 * v + g)
                w.data -= rate * scale * (g + 0.85 * v)


TRICKS = {
    "airbench": ({}, {}),
    "polar-express": ({"polar_express": 1e-3}, {"coefficients": POLAR}),
    "normuon": ({"row_momentum": 0.8}, {"evened": True}),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_five_steps_are_airbenchs_with_or_without_tricks(trick):
    fields, settings = TRICKS[trick]
    recipe = dataclasses.replace(RECIPE, optimizer=dataclasses.replace(OPTIM, **fields))
    flat, model = FlatModel(make_model(), torch.float64), make_model().double()
    optimizer, reference = build_optimizer(flat, recipe, STEPS), AirbenchReference(model, **settings)
    assert isinstance(optimizer, FlatMuon)
    for step in range(STEPS):
        fill_gradients(flat.model, step)
        fill_gradients(model, step)
        optimizer.step()
        reference.step(step, scale=1 - (step + 1) / STEPS)
    start = dict(make_model().named_parameters())
    for (name, mine), (_, expected) in zip(flat.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7, msg=name)
        assert mine.requires_grad != torch.equal(mine.float(), start[name]), name


def test_the_mean_loss_and_another_rate_of_decay_reach_all_else():
    """The head's decay is a share of the weight: with no gradient its first step removes (1 + momentum) shares."""
    recipe = dataclasses.replace(RECIPE, schedule=Schedule((0, 1), (1, 1)))
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(OPTIM, weight_decay=0.01, filter_decay=0.03))
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, norm_every=0))
    flat, start = FlatModel(make_model(), torch.float64), make_model().double()
    build_optimizer(flat, recipe, STEPS).step()
    for (name, mine), (_, before) in zip(flat.model.named_parameters(), start.named_parameters(), strict=True):
        kept = 1 - 0.03 if mine.dim() == 4 else 1 - 0.01 * (1 + 0.85)
        torch.testing.assert_close(mine, before * kept if mine.requires_grad else before, rtol=1e-6, atol=0, msg=name)


def test_filters_are_normalized_in_the_steps_that_the_interval_says():
    flags = normalizing_steps(dataclasses.replace(OPTIM, norm_every=2, norm_growth=15), 60)
    expected, last = [], 0
    for step in range(1, 61):  # cifar10-speedrun's rule
        expected.append(step - last >= 2 + int(15 * step / 60))
        last = step if expected[-1] else last
    assert flags == expected and 3 < sum(flags) < 15
    assert normalizing_steps(OPTIM, 4) == [True] * 4
    assert normalizing_steps(dataclasses.replace(OPTIM, norm_every=0, norm_growth=3), 4) == [False] * 4

    recipe = dataclasses.replace(RECIPE, optimizer=dataclasses.replace(OPTIM, norm_every=2))
    flat, model = FlatModel(make_model(), torch.float64), make_model().double()
    optimizer = build_optimizer(flat, recipe, STEPS)
    reference = AirbenchReference(model, normalize=lambda step: step % 2 == 1)
    for step in range(4):
        fill_gradients(flat.model, step)
        fill_gradients(model, step)
        optimizer.step()
        reference.step(step, scale=1 - (step + 1) / STEPS)
    for (name, mine), (_, expected) in zip(flat.model.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compute_copy_the_average_and_a_reset_follow_the_master_weights(dtype):
    flat = FlatModel(make_model(), dtype)
    optimizer, results = build_optimizer(flat, RECIPE, STEPS), []
    for _ in range(2):
        flat.load(make_model())
        optimizer.reset()
        averages = [group.weights.clone() for group in flat.groups]
        statistics = flat.statistics.clone()
        for step in range(STEPS):
            fill_gradients(flat.model, step)
            flat.statistics.add_(0.1)
            optimizer.step()
            if step % 2 == 0:
                for average, group in zip(averages, flat.groups, strict=True):
                    average += (1 - 0.9**2) * (group.weights - average)
                statistics += (1 - 0.9**2) * (flat.statistics - statistics)
        for average, group in zip(averages, flat.groups, strict=True):
            assert torch.equal(group.compute, group.weights.to(group.compute.dtype))
            torch.testing.assert_close(group.ema, average)
        torch.testing.assert_close(flat.statistics_ema, statistics)
        results.append(torch.cat([group.weights for group in flat.groups]))
    assert torch.equal(*results)
    assert optimizer.count.item() == STEPS


def test_in_bfloat16_a_step_is_near_that_in_float64():
    steps = []
    for dtype in (torch.bfloat16, torch.float64):
        flat = FlatModel(make_model(), dtype)
        before = flat.groups[0].weights.clone()
        fill_gradients(flat.model, 0)
        build_optimizer(flat, RECIPE, STEPS).step()
        steps.append((flat.groups[0].weights - before).double())
    assert (steps[0] - steps[1]).norm() < 0.03 * steps[1].norm()


def test_no_value_on_the_device_is_read_on_the_host_in_a_step():
    """A CUDA graph could not record it; the average, which on a CPU does read the step, is left out."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    flat = FlatModel(make_model())
    recipe = dataclasses.replace(RECIPE, optimizer=dataclasses.replace(OPTIM, row_momentum=0.8))
    optimizer = build_optimizer(flat, dataclasses.replace(recipe, ema=EMAConfig(decay=0)), STEPS)
    fill_gradients(flat.model, 0)
    with Record():
        optimizer.step()
    assert "fastcifar::newton_schulz" in seen and not optimizer.not_capturable
    assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::item"} & set(seen)


@pytest.mark.parametrize("trick", TRICKS)
def test_muon_alone_takes_the_steps_of_the_flat_one(trick):
    fields, settings = TRICKS[trick][0], {"ns_coefficients": polar_express(3)} if trick == "polar-express" else {}
    filters = {name for name, p in make_model().named_parameters() if p.dim() == 4 and p.requires_grad}
    flat, model = FlatModel(make_model(), torch.float64), make_model().double()
    parameters = dict(model.named_parameters())
    alone = Muon([parameters[name] for name in filters], 0.24, 0.6, ns_steps=3, norm_every=1, **settings)
    alone.param_groups[0]["row_momentum"] = fields.get("row_momentum", 0.0)
    recipe = dataclasses.replace(RECIPE, schedule=Schedule((0, 1), (1, 1)))
    recipe = dataclasses.replace(recipe, optimizer=dataclasses.replace(OPTIM, **fields))
    optimizer = build_optimizer(flat, recipe, STEPS)
    for step in range(STEPS):
        fill_gradients(flat.model, step)
        fill_gradients(model, step)
        optimizer.step()
        alone.step()
    for name, mine in flat.model.named_parameters():
        if name in filters:
            torch.testing.assert_close(mine, parameters[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_alone_is_its_formula_for_matrices_and_filters(nesterov):
    torch.manual_seed(0)
    shapes = [(5, 7), (7, 5), (6, 2, 3, 3), (5, 7)]
    parameters = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    unused = torch.nn.Parameter(torch.ones(2, 2))
    expected = [parameter.detach().clone() for parameter in parameters]
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    optimizer = Muon([*parameters, unused], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.5)
    for _ in range(3):
        loss = optimizer.step(lambda: sum((p * torch.randn_like(p)).sum() for p in parameters).backward() or 1.5)
        assert loss == 1.5
        for w, v, parameter in zip(expected, velocities, parameters, strict=True):
            v.mul_(0.9).add_(parameter.grad)
            direction = parameter.grad + 0.9 * v if nesterov else v
            w.mul_(1 - 0.1 * 0.5).sub_(0.1 * reference_orthogonalized(direction.flatten(1), 5).view_as(w))
        optimizer.zero_grad()
    for w, parameter in zip(expected, parameters, strict=True):
        torch.testing.assert_close(parameter.data, w, rtol=1e-6, atol=1e-8)
    assert torch.equal(unused, torch.ones(2, 2))


SCALES = {
    "none": lambda rows, columns: 1,
    "original": lambda rows, columns: max(1, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
}


@pytest.mark.parametrize("name", SCALES)
def test_muon_alone_scales_updates_by_the_shape_of_the_matrix(name):
    for shape in [(12, 3), (3, 12), (20, 2, 1, 3)]:
        rows, columns = shape[0], math.prod(shape[1:])
        ends = []
        for adjust in (name, "none"):
            parameter = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
            parameter.grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            Muon([parameter], 0.1, weight_decay=0.5, adjust_lr_fn=adjust).step()
            ends.append(parameter.detach() - (1 - 0.1 * 0.5))  # the decay is not scaled
        torch.testing.assert_close(ends[0], ends[1] * SCALES[name](rows, columns))
    with pytest.raises(UserError, match=r"^adjust_lr_fn of Muon is None; allowed: none, original, match_rms_adamw$"):
        Muon([parameter], adjust_lr_fn=None)  # torch's word for "original"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_alone_is_torchs(adjust, nesterov):
    """To the rounding of bfloat16, in which torch's iterates."""
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "nesterov": nesterov, "adjust_lr_fn": adjust}
    ends = []
    for build in (Muon, torch.optim.Muon):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 4), (4, 16), (8, 8))]
        optimizer = build(parameters, **settings)
        start = [parameter.detach().clone() for parameter in parameters]
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        ends.append([parameter.detach() - before for parameter, before in zip(parameters, start, strict=True)])
    for mine, theirs in zip(*ends, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_muon_alone_goes_on_from_its_saved_state():
    parameters = [torch.nn.Parameter(torch.randn(4, 6)) for _ in range(2)]
    parameters[1].data.copy_(parameters[0].data)
    gradients = torch.randn(4, 4, 6)
    first, second = (Muon([parameter], norm_every=3) for parameter in parameters)
    for step, gradient in enumerate(gradients):
        if step == 2:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            parameters[1].data.copy_(parameters[0].data)
        for parameter, optimizer in zip(parameters, (first, second), strict=True):
            parameter.grad = gradient.clone()
            if step >= 2 or optimizer is first:
                optimizer.step()
    assert torch.equal(*parameters)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum of Muon is 1.0; allowed: 0 up to, not including, 1"),
        ({"lr": -0.1}, "lr of Muon is -0.1; allowed: 0 or more"),
        ({"row_momentum": 1.0}, "row_momentum of Muon is 1.0; allowed: 0 up to, not including, 1"),
        ({"ns_coefficients": [1.0] * 9}, "ns_coefficients of Muon are 9 numbers; allowed: 3, or 3 for each of 5 steps"),
        ({"ns_coefficients": 5}, "ns_coefficients of Muon are 5; allowed: numbers, three for a step"),
        ({"ns_steps": 2.5}, "ns_steps of Muon is 2.5; allowed: a whole number"),
        ({"params": [torch.nn.Parameter(torch.ones(3))]}, "a parameter of Muon has shape [3]; allowed: 2 or more dim"),
    ],
)
def test_muon_alone_refuses_what_it_cannot_do(settings, message):
    with pytest.raises(UserError) as refusal:
        Muon(**{"params": [torch.nn.Parameter(torch.ones(3, 3))], **settings})
    assert str(refusal.value).startswith(message)


def test_a_network_without_filters_is_refused():
    with pytest.raises(UserError, match=r"^network\.kind is mlp; allowed: with the optimizer muon one with conv"):
        dataclasses.replace(RECIPE, network=MLPConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_lr": 0.0}, "optimizer.head_lr is 0.0; allowed: 1e-30 or more"),
        ({"sgd_momentum": 1.0}, "optimizer.sgd_momentum is 1.0; allowed: 0 up to, not including, 1"),
        ({"ns_steps": 0}, "optimizer.ns_steps is 0; allowed: 1 to 100 steps"),
        ({"row_momentum": 1.0}, "optimizer.row_momentum is 1.0; allowed: 0 up to, not including, 1"),
        ({"polar_express": -0.1}, "optimizer.polar_express is -0.1; allowed: 0 up to, not including, 1"),
        ({"norm_every": -1}, "optimizer.norm_every is -1; allowed: 0 or more steps"),
        ({"filter_decay": 1.0}, "optimizer.filter_decay is 1.0; allowed: 0 up to, not including, 1"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(UserError) as refusal:
        dataclasses.replace(OPTIM, **fields)
    assert str(refusal.value).startswith(message)
