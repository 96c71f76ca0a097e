"""Dormant units, norms and ranks against slow loops, and what the listener finds of networks made by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.diagnose import DiagnoseCurvature, DiagnosePlasticity, read_diagnosis
from fastcifar.diagnose.plasticity import dormant_units, effective_rank, singular_values, srank
from fastcifar.errors import UserError
from fastcifar.models import Network
from fastcifar.models.units import Units
from fastcifar.training import Trainer, train
from tests.small import ALEXNET, BARE, DAVIDNET, EVERYTHING, MLP

ONE = dataclasses.replace(BARE, epochs=1)
SCALARS = ("dormant", "weight_norm", "gradient_norm", "effective_rank", "srank", "curvature")


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


class Small(Network[None]):
    """A convolution of six units with ReLU, the second and the last dead; whoever reads them is a linear layer."""

    config_class = type(None)
    head = "classifier"

    def build(self, config, classes):
        self.conv, self.norm = nn.Conv2d(3, 6, 3, stride=4), nn.BatchNorm2d(6)
        self.hidden, self.classifier = nn.Linear(6 * 64, 5), nn.Linear(5, classes)
        with torch.no_grad():
            self.norm.bias[[1, 5]] = -100

    def features(self, x):
        return torch.tanh(self.hidden(F.relu(self.norm(self.conv(x))).flatten(1)))

    def units(self):
        first = Units("conv", "hidden", seen="norm", norm="norm", activation="relu")
        return first, Units("hidden", "classifier", seen="hidden", activation="tanh")


class Nameless(nn.Sequential):
    """No units, no features, no norm."""

    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(), nn.Linear(4, classes))


def diagnosed(recipe, data, model=None, **options):
    plasticity = DiagnosePlasticity(**{"curvature": False, **options})
    run = train(recipe, data, device="cpu", model=model, listeners=[plasticity])
    return plasticity.found, run


def normalized(data, count):
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (data.train.images[:count].permute(0, 3, 1, 2).float() - mean) / std


@given(st.integers(0, 2**30), st.sampled_from([(4, 5), (3, 5, 2, 3), (1, 1), (2, 7, 1, 1)]), st.floats(0, 2))
@settings(max_examples=60)
def test_dormant_units_are_those_of_a_slow_loop(seed, shape, threshold):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x *= (torch.randn(shape[1], generator=generator, dtype=torch.float64) ** 4).view(-1, *[1] * (len(shape) - 2))
    sizes = []
    for unit in range(shape[1]):
        values = [abs(value) for image in x for value in image[unit].flatten().tolist()]
        sizes.append(sum(values) / len(values))
    mean = sum(sizes) / len(sizes)
    wanted = [size / mean <= threshold for size in sizes]
    near = [abs(size / mean - threshold) < 1e-12 for size in sizes]
    found = dormant_units(x, threshold).tolist()
    assert all(one == other or close for one, other, close in zip(found, wanted, near, strict=True))
    tokens = x.flatten(2).transpose(1, 2) if len(shape) == 4 else x[:, None]
    assert torch.equal(dormant_units(tokens, threshold), dormant_units(tokens.transpose(1, 2)[..., None], threshold))


def test_a_layer_that_gives_nothing_is_dormant_and_one_of_equal_units_is_not():
    assert dormant_units(torch.zeros(3, 4), 0.0).all()
    assert not dormant_units(torch.ones(3, 4), 0.999).any()
    assert dormant_units(torch.tensor([[0.0, 1, -1], [0, -1, 1]]), 0.0).tolist() == [True, False, False]


@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=12))
@settings(max_examples=100)
def test_ranks_are_those_of_slow_loops(values):
    singular, total = np.array(values), math.fsum(values)
    if not total:
        assert math.isnan(effective_rank(singular)) and math.isnan(srank(singular))
        return
    entropy = -math.fsum(value / total * math.log(value / total) for value in values if value)
    assert effective_rank(singular) == pytest.approx(math.exp(entropy), rel=1e-12, abs=1e-12)
    assert 1 - 1e-12 <= effective_rank(singular) <= np.count_nonzero(values) * (1 + 1e-12)
    for share in (0.5, 0.99):
        ordered, wanted = sorted(values, reverse=True), 1
        while math.fsum(ordered[:wanted]) < share * total * (1 - 1e-12):
            wanted += 1
        assert srank(singular, share) in (wanted, wanted + 1)
        if abs(math.fsum(ordered[:wanted]) - share * total) > 1e-12 * total:
            assert srank(singular, share) == wanted


def test_ranks_of_known_matrices():
    features = torch.diag(torch.tensor([2.0, 2, 2, 0], dtype=torch.float64))
    assert singular_values(features).tolist() == [2, 2, 2, 0]
    assert effective_rank(singular_values(features)) == pytest.approx(3, abs=1e-12)
    assert srank(np.array([90.0, 9, 1])) == 2 and srank(np.array([90.0, 8.9, 1.1])) == 3
    outer = torch.arange(1.0, 4)[:, None] * torch.arange(1.0, 6)
    assert effective_rank(singular_values(outer)) == pytest.approx(1, abs=1e-6) and srank(singular_values(outer)) == 1
    for unknown in (None, torch.full((2, 2), torch.nan), torch.zeros(0, 3)):
        assert math.isnan(effective_rank(singular_values(unknown))) and math.isnan(srank(singular_values(unknown)))


def test_what_is_found_is_that_of_plain_torch(data):
    recipe = dataclasses.replace(ONE, label_smoothing=0.2)
    found, run = diagnosed(recipe, data, Small, images=48)
    assert (found.steps.tolist(), found.about["images"], found.about["threshold"]) == ([0, 4], 48, 0.025)
    names = ("conv.weight", "hidden.weight", "classifier.weight")
    assert found.layers == (*names, "norm", "hidden")
    network = run.model.train()
    x = normalized(data, 48)
    loss = F.cross_entropy(network(x), data.train.labels[:48], label_smoothing=0.2)
    loss.backward()
    parameters = dict(network.named_parameters())
    for kind, values in (("weight", lambda p: p.detach()), ("gradient", lambda p: p.grad)):
        flat = [values(parameters[name]).double().flatten() for name in names]
        wanted = [math.sqrt(sum(value**2 for value in each.tolist())) for each in flat]
        np.testing.assert_allclose(getattr(found, f"{kind}_norm_by_layer")[1, :3], wanted, rtol=1e-5)
        together = math.sqrt(sum(value**2 for each in flat for value in each.tolist()))
        assert getattr(found, f"{kind}_norm")[1] == pytest.approx(together, rel=1e-5)
        assert np.isnan(getattr(found, f"{kind}_norm_by_layer")[:, 3:]).all()
    singular = torch.linalg.svdvals(network.features(x).double()).detach().numpy()
    assert found.effective_rank[1] == pytest.approx(effective_rank(singular), rel=1e-4)
    assert found.srank[1] == srank(singular)
    assert np.isnan(found.curvature).all() and found.about["curvature_images"] == 0


def test_dead_units_are_counted(data):
    found, _ = diagnosed(ONE, data, Small)
    np.testing.assert_allclose(found.dormant_by_layer[:, 3:], [[2 / 6, 0]] * 2, rtol=1e-12)
    np.testing.assert_allclose(found.dormant, 2 / 11, rtol=1e-12)
    assert np.isnan(found.dormant_by_layer[:, :3]).all()
    everything, _ = diagnosed(ONE, data, Small, threshold=100.0)
    assert everything.dormant.tolist() == [1, 1]


def test_without_units_they_are_what_norms_with_an_activation_hand_on(data):
    """Until a network says which they are."""
    for recipe in (DAVIDNET, dataclasses.replace(EVERYTHING, epochs=1)):
        found, run = diagnosed(dataclasses.replace(recipe, epochs=1), data, images=32)
        assert np.isfinite(found.dormant).all() and ((found.dormant >= 0) & (found.dormant <= 1)).all()
        looked_at = [name for name, each in zip(found.layers, found.dormant_by_layer.T, strict=True)
                     if np.isfinite(each).all()]  # fmt: skip
        assert looked_at
        if not run.model.units():
            assert all(run.model.get_submodule(name).activation != "none" for name in looked_at)


def test_what_is_not_known_is_nan_and_the_rest_is_there(data):
    found, _ = diagnosed(ONE, data, Nameless)
    start = found.at_start()
    assert tuple(start) == SCALARS and all(type(value) is float for value in start.values())
    assert [name for name, value in start.items() if math.isnan(value)] == [
        *("dormant", "effective_rank", "srank", "curvature")
    ]  # fmt: skip
    assert found.layers == ("1.weight", "3.weight")
    assert not {"dormant", "rank", "curvature", "dormant-by-layer"} & found.figures().keys()


def test_where_a_bias_alone_trains_there_are_no_norms(data):
    class Biased(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(classes))

        def forward(self, x):
            return x.flatten(1)[:, : len(self.bias)] + self.bias

    found, _ = diagnosed(ONE, data, Biased, curvature=True)
    start = found.at_start()
    assert found.layers == () and [name for name, value in start.items() if not math.isnan(value)] == ["curvature"]
    assert list(found.figures()) == ["curvature"]


def test_the_curvature_is_that_of_its_own_diagnosis(data):
    plasticity, curvature = DiagnosePlasticity(), DiagnoseCurvature()
    train(ONE, data, device="cpu", listeners=[plasticity, curvature])
    assert plasticity.found.curvature.tolist() == curvature.found.eigenvalue.tolist()
    assert all(map(math.isfinite, (value for name, value in plasticity.found.at_start().items() if name != "dormant")))
    assert plasticity.found.at_start()["curvature"] == curvature.found.eigenvalue[0]


def test_a_training_that_diverged_is_nan(data):
    class Broken(Small):
        def build(self, config, classes):
            super().build(config, classes)
            nn.init.constant_(self.conv.weight, torch.nan)

    plasticity = DiagnosePlasticity(curvature=True)
    with pytest.raises(fastcifar.NonFiniteLoss):
        train(ONE, data, device="cpu", model=Broken, listeners=[plasticity])
    assert all(map(math.isnan, plasticity.found.at_start().values()))


def test_accuracies_are_those_of_the_rows_with_those_before_the_first_step(data, tmp_path):
    file = tmp_path / "plasticity.npz"
    plasticity = DiagnosePlasticity(file, curvature=False, moments=2)
    run = Trainer(MLP, data, "cpu").run(listeners=[plasticity], evaluate_at_start=True)
    found, rows = read_diagnosis(file), [run.rows[place] for place in (0, 2, 3)]
    assert found.steps.tolist() == [0, 8, 12]
    assert found.test_accuracy.tolist() == [row.test_accuracy for row in rows]
    assert found.train_accuracy.tolist() == [row.train_accuracy for row in rows]
    never, _ = diagnosed(MLP, data)
    assert np.isnan(never.test_accuracy[0]) and np.isfinite(never.test_accuracy[1:]).all()
    figure = found.figures()["norms"]
    assert [line.label for line in figure.right] == ["test accuracy", "accuracy in training"]
    assert list(figure.right[0].y) == found.test_accuracy.tolist()


def test_figures_have_accuracy_at_the_right(data, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("fastcifar.report.figures.FORMATS", ("svg",))
    found, _ = diagnosed(ONE, data, Small)
    names = {"dormant", "norms", "rank", "dormant-by-layer", "weight-by-layer", "gradient-by-layer"}
    assert {path.stem for path in found.draw(tmp_path)} == {f"plasticity-{name}" for name in names}
    drawn = (tmp_path / "plasticity-rank.svg").read_text()
    assert all(f">{words}<" in drawn for words in ("effective rank", "srank", "test accuracy", "accuracy", "rank"))


@pytest.mark.parametrize("options", [{"images": 0}, {"threshold": -0.1}, {"curvature": 1}, {"moments": -1}])
def test_what_is_out_of_range_is_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        DiagnosePlasticity(**options)


def test_of_alexnet_whose_features_are_a_module_there_are_ranks():
    found, _ = diagnosed(dataclasses.replace(ONE, network=ALEXNET), make_synthetic(16, 10).resize(64))
    assert np.isfinite(found.effective_rank).all()
