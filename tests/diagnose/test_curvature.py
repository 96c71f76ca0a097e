"""The largest eigenvalue of the Hessian, against all of it."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.func import functional_call, hessian
from torch.nn import functional as F

from fastcifar.data.synthetic import make_synthetic
from fastcifar.diagnose import DiagnoseCurvature
from fastcifar.diagnose.curvature import largest_eigenvalue
from fastcifar.recipes import EMAConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.training import train
from tests.small import BARE, DAVIDNET


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.integers(0, 100))
@settings(max_examples=50)
def test_the_eigenvalue_of_a_quadratic_form_is_the_largest(values, seed):
    """Where one stands apart from all others, power iteration finds it, positive or negative as it may be, of a first
    vector that has something of it."""
    most = max(*map(abs, values), 1.0)
    values = [*values, 2 * most] if seed % 2 else [*(min(value, 0.0) for value in values), most, -2 * most]
    size, generator = len(values), torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    first = torch.randn(size, generator=torch.Generator().manual_seed(0)).double()
    parts = (first @ basis / first.norm()).abs()
    assume(min(parts[values.index(max(values))], parts[-1]) > 0.1)
    form = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    found = largest_eigenvalue(lambda at: at["a"] @ form @ at["a"] / 2, {"a": torch.zeros(size, dtype=torch.float64)})
    scale = max(map(abs, values))
    assert max(values) - 0.05 * scale <= found <= max(values) + 1e-6 * scale


def test_what_is_flat_has_none_and_what_is_not_finite_says_so():
    at = {"a": torch.zeros(3)}
    assert largest_eigenvalue(lambda at: at["a"].sum(), at) == 0
    assert np.isnan(largest_eigenvalue(lambda at: (at["a"] ** 2).sum() * torch.inf, at))


def test_the_curvature_is_that_of_the_whole_hessian(data):
    recipe = dataclasses.replace(
        DAVIDNET,
        epochs=1,
        network=DavidNetConfig(widths=(2, 2, 2, 2), ghost_batch=16, residual=()),
        label_smoothing=0.2,
    )
    recipe = dataclasses.replace(recipe, ema=EMAConfig(decay=0.0))  # the run's model has the weights themselves
    curvature = DiagnoseCurvature(images=16)
    run = train(recipe, data, device="cpu", listeners=[curvature])
    assert curvature.found.steps.tolist() == [0, 4]
    images = data.train.images[:16].permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    network = run.model.train()
    for norm in network.modules():
        norm.track_running_stats = False
    held = {name: each.detach() for name, each in network.named_parameters() if each.requires_grad}
    sizes = [each.numel() for each in held.values()]

    def loss(flat):
        parts = zip(held, flat.split(sizes), held.values(), strict=True)
        parameters = {name: part.view(like.shape) for name, part, like in parts}
        logits = functional_call(network, parameters, ((images - mean) / std,))
        return F.cross_entropy(logits, data.train.labels[:16], label_smoothing=0.2)

    whole = hessian(loss)(torch.cat([each.flatten() for each in held.values()]))
    largest = torch.linalg.eigvalsh(whole.double()).max().item()
    assert curvature.found.eigenvalue[-1] == pytest.approx(largest, rel=0.05)


def test_the_figure_shows_the_limit_of_the_rate_and_the_rate(data):
    curvature = DiagnoseCurvature(images=16, moments=2)
    train(BARE, data, device="cpu", listeners=[curvature])
    found = curvature.found
    assert found.steps.tolist() == [0, 8, 12]
    limit, rate = found.figures()["rate"].lines
    assert limit.y == [2 / value for value in found.eigenvalue]
    assert rate.y == [None, 0.05, 0.05]
