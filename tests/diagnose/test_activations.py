"""What layers give, against plain torch, and a training that nothing looks at."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.diagnose import DIAGNOSES, DiagnoseActivations, read_diagnosis
from fastcifar.diagnose.activations import AFTER, BATCH, BEFORE, FIXED, SCALE, SHIFT
from fastcifar.errors import UserError
from fastcifar.models import GlobalMaxPool
from fastcifar.recipes import EnsembleConfig, LookaheadConfig
from fastcifar.recipes.networks.davidnet import DavidNetInterpolationConfig
from fastcifar.training import Trainer, train
from tests.small import BARE, DAVIDNET, EVERYTHING, MLP

ONE = dataclasses.replace(BARE, epochs=1)


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


class Plain(nn.Sequential):
    """Nothing but linear operations between the first norm and the second, which sees what a shift does to it."""

    def __init__(self, classes):
        first, second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3, bias=False)
        head = nn.Linear(6, classes)
        super().__init__(first, nn.BatchNorm2d(5), second, nn.BatchNorm2d(6), nn.ReLU(), GlobalMaxPool(), head)


class Dropping(Plain):
    """Draws from torch's generators in every pass."""

    def forward(self, x):
        return super().forward(F.dropout(nn.functional.dropout2d(x, 0.5, self.training), 0.5, self.training))


def diagnosed(recipe, data, model=None, **settings):
    activations = DiagnoseActivations(**settings)
    run = train(recipe, data, device="cpu", model=model, listeners=[activations])
    return activations.found, run


def test_statistics_are_those_of_plain_torch(data):
    found, run = diagnosed(ONE, data, Plain, images=48)
    assert found.layers == ("1", "3")
    assert (found.steps.tolist(), found.about["images"]) == ([0, 4], 48)
    images = data.train.images[:48].permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    x = run.model((images - mean) / std)
    share = x.var(0, correction=0).sum() / x.square().mean(0).sum()
    assert found.variation[1, 1] == pytest.approx(share.item(), rel=1e-3)
    x, outputs, network = (images - mean) / std, [], run.model.train()
    for module in network:
        before, x = x, module(x)
        if isinstance(module, nn.BatchNorm2d):
            outputs.append((before, x))
    for layer, sides in enumerate(outputs):
        for side, values in zip((BEFORE, AFTER), sides, strict=True):
            channels = values.shape[1]
            expected = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
            for name, each in zip(("mean", "variance"), expected, strict=True):
                measured = getattr(found, name)[1, layer, side]
                np.testing.assert_allclose(measured[:channels], each.detach(), rtol=1e-3, atol=1e-5)
                assert np.isnan(measured[channels:]).all()
            share = expected[1].max() / expected[1].sum()
            assert found.dominant[1, layer, side] == pytest.approx(share.item(), rel=1e-3)
    share = x.var(0, correction=0).sum() / x.square().mean(0).sum()
    assert found.variation[1, 0] == pytest.approx(share.item(), rel=1e-3)


def test_a_norm_removes_a_shift_of_its_input_and_not_all_of_a_scale(data):
    found, _ = diagnosed(ONE, data, Plain)
    assert (found.change[:, SHIFT, BATCH] < 1e-4).all()
    assert (found.change[:, SHIFT, FIXED] > 1e-2).all()
    assert (found.change[:, SCALE] > 1e-3).all()
    assert (found.external <= found.change + 1e-9).all()
    half, _ = diagnosed(ONE, data, Plain, size=0.05)
    np.testing.assert_allclose(half.change[0, SHIFT, FIXED] * 2, found.change[0, SHIFT, FIXED], rtol=0.1)


def test_without_a_norm_both_modes_are_one(data):
    recipe = dataclasses.replace(DAVIDNET, epochs=1, network=dataclasses.replace(DAVIDNET.network, norm=False))
    found, _ = diagnosed(recipe, data)
    assert [name.rpartition(".")[2] for name in found.layers] == ["norm"] * 8
    np.testing.assert_allclose(found.change[:, :, BATCH], found.change[:, :, FIXED], rtol=1e-4)
    np.testing.assert_allclose(found.variation[:, 0], found.variation[:, 1], rtol=1e-4)
    norm, _ = diagnosed(dataclasses.replace(DAVIDNET, epochs=1), data)
    assert norm.variation[0, 0] > 3 * found.variation[0, 0]  # the post's "constant function"
    assert found.external[0, SHIFT, FIXED] > 3 * norm.external[0, SHIFT, BATCH]


def test_a_constant_function_has_no_variation(data):
    class Constant(Plain):
        def __init__(self, classes):
            super().__init__(classes)
            nn.init.zeros_(self[-1].weight)

    found, _ = diagnosed(ONE, data, Constant)
    assert found.variation[0].tolist() == [0, 0]
    assert np.isnan(found.change[0]).all()
    assert (found.variation[1] > 0).all()


@pytest.mark.parametrize("name", ["own", "everything"])
def test_a_training_with_all_diagnoses_is_the_same_to_the_bit(data, name, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcifar.diagnose.curvature._MOST", 2)  # products with the Hessian, for time
    recipe, model = (ONE, Dropping) if name == "own" else (dataclasses.replace(EVERYTHING, epochs=2), None)
    recipe = dataclasses.replace(recipe, lookahead=LookaheadConfig(every=3))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    listeners = [diagnose(tmp_path / f"{kind}.npz") for kind, diagnose in DIAGNOSES.items()]
    run = train(recipe, data, device="cpu", model=model, listeners=listeners)
    assert torch.equal(before, torch.get_rng_state())
    plain = train(recipe, data, device="cpu", model=model)
    assert all(torch.equal(tensor, plain.state[name]) for name, tensor in run.state.items())
    assert [row.train_loss for row in run.rows] == [row.train_loss for row in plain.rows]
    assert torch.equal(run.tta_logits, plain.tta_logits)
    for listener, kind in zip(listeners, DIAGNOSES, strict=True):
        kept = read_diagnosis(tmp_path / f"{kind}.npz")
        for each in kept.axes:
            np.testing.assert_array_equal(getattr(kept, each), getattr(listener.found, each))


NETWORKS = {
    "mlp": MLP,
    "ensemble": dataclasses.replace(DAVIDNET, ensemble=EnsembleConfig(members=2, joint="mean")),
    "interpolation": dataclasses.replace(
        DAVIDNET, network=DavidNetInterpolationConfig(widths=(8, 8, 8, 8), ghost_batch=16)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_has_layers_and_figures(data, name, tmp_path, monkeypatch):
    found, _ = diagnosed(dataclasses.replace(NETWORKS[name], epochs=1), data)
    assert np.isfinite(found.variation).all() and found.layers
    assert np.isfinite(found.change).all()
    assert np.isfinite(found.mean[:, :, BEFORE].max(-1, initial=-np.inf, where=np.isfinite(found.mean[:, :, BEFORE])))\
        .all()  # fmt: skip
    figures = found.figures()
    assert {"channels-before", "mean", "spread", "dominant", "constant", "scale", "shift"} <= figures.keys()
    assert ("channels-after" in figures) == (name != "mlp")
    if name == "mlp":
        assert found.layers == ("hidden.0",)
        pytest.importorskip("matplotlib")
        monkeypatch.setattr("fastcifar.report.figures.FORMATS", ("svg",))
        assert {path.name for path in found.draw(tmp_path)} >= {"activations-shift.svg", "activations-constant.svg"}


def test_borders_and_ghost_batches_are_as_in_training(data):
    recipe = dataclasses.replace(EVERYTHING, epochs=0.25)
    found, _ = diagnosed(recipe, data)
    assert found.mean.shape[:3] == (2, 6, 2)
    after = found.mean[:, :, AFTER] - found.mean[:, :, BEFORE]
    assert np.isfinite(after[:, :, :4]).all()

    found, _ = diagnosed(dataclasses.replace(DAVIDNET, epochs=1), data, images=50)
    assert found.about["images"] == 48  # ghost batches of 16
    with pytest.raises(UserError, match="the diagnosis has 5 images; allowed: 16, a ghost batch, or more"):
        diagnosed(DAVIDNET, data, images=5)


def test_a_border_of_zeros_is_no_part_of_a_layer():
    from fastcifar.diagnose.activations import _by_channel, without_border

    norm, x = fastcifar.GhostBatchNorm(4), torch.randn(8, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    inside = without_border(norm(x, border=True), {"border": True})
    for plain, bordered in zip(_by_channel(norm(x)), _by_channel(inside), strict=True):
        torch.testing.assert_close(plain, bordered)


def test_moments_are_ends_of_epochs(data):
    for moments, steps in ((32, [0, 4, 8, 12]), (2, [0, 8, 12]), (1, [0, 12])):
        found, _ = diagnosed(MLP, data, moments=moments)
        assert found.steps.tolist() == steps


def test_epoch_zero_is_no_second_moment(data):
    activations = DiagnoseActivations()
    Trainer(MLP, data, "cpu").run(listeners=[activations], evaluate_at_start=True)
    assert activations.found.steps.tolist() == [0, 4, 8, 12]
