"""FIRE: the formula tap by tap, orthogonality of any matrix, and what it leaves alone."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from fastcifar.errors import UserError
from fastcifar.plasticity import dash, fire
from fastcifar.plasticity.fire import polar_factor


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, (1, 2)), nn.Flatten(), nn.Linear(140, 10)
    return nn.Sequential(*layers).to(dtype)


def slow_iteration(matrix, steps):
    x = matrix / matrix.norm()
    for _ in range(steps):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return x


@pytest.mark.parametrize("steps", [1, 10])
def test_each_tap_is_iterated_alone_and_scaled(steps):
    module = network()
    before = copy.deepcopy(module)
    fire(module, steps)
    for layer, old in zip(module, before, strict=True):
        if isinstance(layer, nn.Conv2d):
            outputs, inputs, height, width = layer.weight.shape
            for i in range(height):
                for j in range(width):
                    wanted = slow_iteration(old.weight[:, :, i, j], steps) * (outputs / inputs) ** 0.5 / height / width
                    torch.testing.assert_close(layer.weight[:, :, i, j], wanted, rtol=0, atol=1e-12)
        elif isinstance(layer, nn.Linear):
            wanted = slow_iteration(old.weight, steps) * (10 / 140) ** 0.5
            torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=1e-12)
        elif isinstance(layer, nn.BatchNorm2d):
            assert all(torch.equal(one, old.state_dict()[name]) for name, one in layer.state_dict().items())
        if getattr(layer, "bias", None) is not None:
            assert torch.equal(layer.bias, old.bias)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24))


@settings(max_examples=25)
@given(shape=shapes, decades=st.floats(0, 9), scale=st.floats(-20, 20), seed=st.integers(0, 1000))
@example(shape=(2, 24, 20), decades=9.0, scale=0.0, seed=0)
def test_matrices_with_singular_values_over_nine_decades_become_orthogonal(shape, decades, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    _, rows, columns = shape
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -decades, min(rows, columns), dtype=torch.float64) * 10**scale
    found = polar_factor(u @ torch.diag(values) @ v)
    near = torch.linalg.svdvals(found)
    assert (near - 1).abs().max() <= 1e-3
    torch.testing.assert_close(found, u @ v, rtol=0, atol=1e-12 * 10**decades)  # as well as it is conditioned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_their_dtype_and_layout(dtype):
    module = network(dtype).to(memory_format=torch.channels_last)
    wanted = network(dtype).double()
    fire(module)
    fire(wanted)
    assert module[0].weight.dtype == dtype and module[0].weight.is_contiguous(memory_format=torch.channels_last)
    for found, exact in zip(module.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(found, exact.to(dtype))


def test_ten_steps_leave_small_singular_values_behind():
    matrix = torch.diag(torch.tensor([1, 1e-3], dtype=torch.float64))[None]
    assert torch.linalg.svdvals(polar_factor(matrix, 10))[0, 1] < 0.1
    assert torch.linalg.svdvals(polar_factor(matrix))[0, 1] > 0.999


def test_dead_units_stay_dead_and_frozen_and_tied_layers_are_let_be_and_done_once():
    module = network(torch.float32)
    with torch.no_grad():
        module[0].weight[2] = 0
        module[3].weight[:, :, 0, 1] = 0
    module[5].weight.requires_grad_(False)
    still = module[5].weight.clone()
    module.append(module[0])
    fire(module)
    assert torch.equal(module[5].weight, still)
    assert not module[0].weight[2].any() and not module[3].weight[:, :, 0, 1].any()
    rest = [0, 1, 3, 4, 5]
    for taps in module[0].weight.detach().flatten(2).permute(2, 0, 1):
        values = torch.linalg.svdvals(taps[rest].double()) / (6 / 3) ** 0.5 * 9
        torch.testing.assert_close(values, torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0)


def steps_of(monkeypatch, matrices, steps=0):
    """Return the polar factors of `matrices`, and the number of steps that it took."""
    count, step = [0], torch.baddbmm

    def counted(*args, **how):
        count[0] += 1
        return step(*args, **how)

    monkeypatch.setattr(torch, "baddbmm", counted)
    found = polar_factor(matrices, steps)
    monkeypatch.undo()
    return found, count[0]


@pytest.mark.parametrize("shape", [(3, 12, 20), (3, 20, 12), (3, 12, 12)])
def test_dead_units_cost_no_steps(shape, monkeypatch):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrices[1:, 3], matrices[:, :, 2], matrices[2] = 0, 0, 0  # of a square the columns, and rows too
    found, steps = steps_of(monkeypatch, matrices)
    assert steps == 0
    assert torch.equal(found == 0, matrices == 0)
    assert steps_of(monkeypatch, matrices, 10)[1] == 10


def test_rows_that_are_equal_stay_so_and_other_numbers_than_finite_ones_spread():
    row = torch.randn(1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([row, row, row.flip(2)], 1)
    u, _, v = torch.linalg.svd(rows, full_matrices=False)
    torch.testing.assert_close(polar_factor(rows), u[:, :, :2] @ v[:, :2], rtol=0, atol=1e-3)
    rows[0, 0, 0] = torch.nan
    assert polar_factor(rows).isnan().all()


@pytest.mark.parametrize("method", [fire, lambda module: dash(module, [])], ids=["fire", "dash"])
@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
def test_weights_that_are_computed_from_others_are_refused_and_nothing_changes(wrap, method):
    module = network()
    wrap(module[3])
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(
        UserError, match=r"^3\.weight is computed from other parameters; allowed: a parameter of its own"
    ):
        method(module)
    assert all(torch.equal(found, before[name]) for name, found in module.state_dict().items())
    with pytest.raises(UserError, match=r"^weight is computed"):
        method(wrap(nn.Linear(2, 2)))
    for parameter in module[3].parameters():
        parameter.requires_grad_(False)
    fire(module)
    assert not torch.equal(module[0].weight, before["0.weight"])


@pytest.mark.parametrize("steps", [-1, 1001, 1.5, "10"])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(UserError, match=r"steps is .*; allowed: (0 to 1,000|a whole number)"):
        fire(network(), steps)


def test_a_layer_without_weights_is_left_as_it_is():
    fire(nn.Linear(0, 3))
