"""`Grid`: the values of a field that a search tries."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcifar.recipes import AverageConfig, EMAConfig, change
from fastcifar.recipes.grid import Grid, grid_of
from fastcifar.recipes.optimizers.torch import AdamConfig
from tests.small import MLP

RECIPE = change(MLP, {"epochs": 1, "ema.decay": 0.0})


@given(
    start=st.floats(1e-6, 1e3) | st.integers(1, 10**6) | st.tuples(st.integers(1, 512), st.integers(1, 512)),
    factor=st.floats(1.01, 20),
    path=st.lists(st.sampled_from([1, -1]), max_size=12),
)
def test_a_step_and_back_leads_to_the_same_value_of_the_same_kind(start, factor, path):
    grid, power, seen = Grid("field", start, factor), 0, {}
    assert grid.value(0) is start
    for direction in path:
        following = grid.step(power, direction)
        if following is None:
            continue
        assert grid.step(following, -direction) == power
        low, high = sorted((power, following))
        assert grid.value(low) < grid.value(high) and type(grid.value(following)) is type(start)
        power = following
        assert seen.setdefault(power, grid.value(power)) == grid.value(power)
        assert isinstance(start, float) or all(each >= 1 for each in [grid.value(power)] if isinstance(each, int))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("optimizer.lr", [0.25, 0.5, 1.0, 2.0, 4.0]),
        ("optimizer.momentum", [0.6, 0.8, 0.9, 0.95, 0.975]),
        ("network.hidden", [(2,), (4,), (8,), (16,), (32,)]),
        ("batch_size", [4, 8, 16, 32, 64]),
        ("epochs", [0.25, 0.5, 1.0, 2.0, 4.0]),
        ("schedule.values", [(0.0, f, f / 10, f / 10) for f in (0.25, 0.5, 1.0, 2.0, 4.0)]),
        ("augment.crop", [1, 2, 4, 8, 16]),
        ("label_smoothing", [0.05, 0.1, 0.2, 0.4, 0.8]),
    ],
)
def test_the_values_of_a_field_are_short_numbers_of_its_kind(field, values):
    recipe = change(RECIPE, {"optimizer.momentum": 0.9})
    grid = grid_of(recipe, field, 2)
    assert [grid.value(power) for power in range(-2, 3)] == values
    assert all(type(grid.value(power)) is type(grid.start) for power in range(-2, 3))
    if field in ("batch_size", "augment.crop"):
        assert grid.step(-10, -1) is None and grid.value(-10) == 1


def test_decays_of_averages_move_by_their_distance_from_1_and_shares_do_not():
    adam = dataclasses.replace(RECIPE, optimizer=AdamConfig(), ema=EMAConfig(0.99), average=AverageConfig())
    assert grid_of(adam, "optimizer.betas", 2).value(1) == (0.95, 0.9995)
    assert grid_of(adam, "ema.decay", 2).value(-1) == 0.98
    assert grid_of(change(adam, {"select.keep": 0.5}), "select.keep", 2).value(1) == 1.0
