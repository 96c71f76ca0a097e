"""Dropout in bulk: against its definition, for every share, shape and memory format."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastcifar.models.dropout import Dropout

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@given(p=st.floats(0.01, 0.99), shape=SHAPES, channels_last=st.booleans(), seed=st.integers(0, 99))
def test_an_element_is_dropped_or_scaled_and_so_is_its_gradient(p, shape, channels_last, seed):
    torch.manual_seed(seed)
    x = 1 + torch.rand(shape, dtype=torch.float64)
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    y = Dropout(p)(x.requires_grad_())
    y.sum().backward()
    assert y.shape == x.shape
    factors = (y != 0).to(x) / (1 - p)
    torch.testing.assert_close(y, x * factors, rtol=1e-12, atol=0)
    torch.testing.assert_close(x.grad, factors, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("like", [torch.ones(1000, 1001), torch.ones(1001, 1000).T, torch.ones(2002, 1000)[::2]])
def test_as_many_are_dropped_as_asked_for_each_by_itself(p, like):
    torch.manual_seed(0)
    dropped = (Dropout(p)(like) == 0).double()
    spread = (p * (1 - p) / dropped.numel()) ** 0.5
    assert dropped.mean().item() == pytest.approx(p, abs=5 * spread + 1 / 65536)
    if 0.05 < p < 0.95:  # neighbors that are drawn as one number, and those that are not
        for step in (1, 2, 3, 4, 5):
            both = (dropped.flatten()[step:] * dropped.flatten()[:-step]).mean().item()
            assert both == pytest.approx(p * p, abs=5 * p * (1 - p) / dropped.numel() ** 0.5 + 2 * 5 * spread * p)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_and_all(p):
    assert Dropout(p)(torch.ones(7)).tolist() == [1.0 - p] * 7


def test_the_seed_decides_and_evaluation_drops_nothing():
    module, x = Dropout(0.5), torch.ones(4000)

    def masked(seed):
        torch.manual_seed(seed)
        return module(x)

    assert torch.equal(masked(1), masked(1))
    assert not torch.equal(masked(1), masked(2))
    assert isinstance(module, nn.Dropout)
    assert torch.equal(module.eval()(x), x)
