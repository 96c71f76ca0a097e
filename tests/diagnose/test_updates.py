"""Sizes of updates, against their definitions and a training that nothing looks at."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.diagnose import DiagnoseForgetting, DiagnoseUpdates, read_diagnosis
from fastcifar.diagnose.updates import SMOOTHING
from fastcifar.errors import Notice, UserError
from fastcifar.recipes import ContinualBackpropConfig, LookaheadConfig, LossScalingConfig, ReDoConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.lars import LARSConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.training import Listener, Trainer, train
from tests.small import BARE, DAVIDNET, EVERYTHING, MLP

OPTIMIZERS = {
    "sgd": SGDConfig(),
    "lars": LARSConfig(bias_lr=0.1),
    "muon": MuonConfig(bias_lr=0.1, head_lr=0.1),
    "adam": AdamConfig(lr=0.01),
    "own": torch.optim.Adagrad,
}
WIDER = dataclasses.replace(MLP, network=MLPConfig(hidden=(8, 8, 8)))


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


class Weights(Listener):
    """Copies the weights before and after every step, by the network's own names."""

    def on_start(self, trainer):
        self.trainer, self.copies = trainer, []
        self.on_step(0, 0)

    def on_step(self, step, total_steps):
        named = self.trainer.model.named_parameters()
        self.copies.append({name: weight.detach().double().clone() for name, weight in named if weight.requires_grad})

    def relative(self, name, step, before):
        new, old = self.copies[step][name], self.copies[before][name]
        return ((new - old).norm() / old.norm()).item()


def test_gradient_descent_moves_weights_by_the_rate_times_the_gradient(data):
    updates = DiagnoseUpdates()
    train(BARE, data, device="cpu", listeners=[updates])
    found = updates.found
    assert found.steps.tolist() == list(range(13))  # four steps an epoch, each a moment
    np.testing.assert_allclose(found.rate[1:], 0.05)
    moved = found.rate[1:, None] * found.gradient[1:] / found.weight[:-1]
    np.testing.assert_allclose(found.update[1:], moved, rtol=1e-4)
    np.testing.assert_allclose(found.displacement[1:], found.update[1:])
    assert found.about["weights"] == ["hidden.0.weight", "classifier.weight"]
    smoothed = found.gradient[1]
    for gradient, value in zip(found.gradient[1:], found.smoothed[1:], strict=True):
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * gradient
        np.testing.assert_allclose(value, smoothed)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_what_the_weights_do_with_every_optimizer(data, name):
    updates, weights = DiagnoseUpdates(moments=6), Weights()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rate, which is another optimizer's
        recipe = DAVIDNET if name == "muon" else WIDER
        train(recipe, data, device="cpu", listeners=[weights, updates], optimizer=OPTIMIZERS[name])
    found = updates.found
    assert found.steps.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert [*weights.copies[0]] == [*found.layers]
    for place, layer in enumerate(found.layers):
        for moment, (first, last) in enumerate(zip(found.steps, found.steps[1:], strict=False), start=1):
            size = weights.copies[last][layer].norm().item()
            assert found.weight[moment, place] == pytest.approx(size, rel=1e-4)
            steps = [weights.relative(layer, step, step - 1) for step in range(first + 1, last + 1)]
            steps = [step for step in steps if np.isfinite(step)]  # from zero there is no relative size
            assert found.update[moment, place] == pytest.approx(np.mean(steps), rel=1e-3, abs=1e-9)
            whole = weights.relative(layer, last, first)
            if np.isfinite(whole):
                assert found.displacement[moment, place] == pytest.approx(whole, rel=1e-3, abs=1e-9)


def test_lookahead_is_no_update(data):
    recipe = dataclasses.replace(MLP, lookahead=LookaheadConfig(every=2))
    updates, weights = DiagnoseUpdates(), Weights()
    train(recipe, data, device="cpu", listeners=[weights, updates])
    found, layer = updates.found, "classifier.weight"
    place = found.layers.index(layer)
    for step in range(1, 13):
        expected = weights.relative(layer, step, step - 1) if step % 2 else np.nan
        assert found.update[step, place] == pytest.approx(expected, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    "method", [{"redo": ReDoConfig(every=1, threshold=0.9, images=64)},
               {"continual_backprop": ContinualBackpropConfig(rate=0.05, maturity=2)}]
)  # fmt: skip
def test_units_that_begin_again_are_no_update(data, method):
    recipe = dataclasses.replace(MLP, optimizer=SGDConfig(lr=1e-6), **method)
    updates = DiagnoseUpdates()
    run = train(recipe, data, device="cpu", listeners=[updates])
    assert run.record.units_replaced and np.nanmax(updates.found.displacement) > 0.01
    assert np.nanmax(updates.found.update) < 1e-3


def test_frozen_parameters_have_a_size_and_nothing_else(data):
    updates, ends = DiagnoseUpdates(), []
    listeners = [updates, Listener(on_epoch=lambda row: ends.append(updates.found.steps[-1]))]
    train(dataclasses.replace(EVERYTHING, epochs=2), data, device="cpu", listeners=listeners)
    found = updates.found
    place, is_frozen = found.layers.index("whitening.bias"), found.steps > ends[0]
    assert is_frozen.sum() == ends[1] - ends[0] > 0
    for name in ("update", "displacement", "gradient", "smoothed"):
        values = getattr(found, name)
        assert np.isnan(values[is_frozen, place]).all()
        assert np.isfinite(values[1:][~is_frozen[1:], place]).all() or name in ("update", "displacement")
    assert np.isfinite(found.weight).all()
    assert not any("whitening.weight" in name for name in found.layers)  # it never trains


def test_steps_that_loss_scaling_leaves_out_do_not_count(data):
    scaling = LossScalingConfig(dynamic=True, initial=2.0**40)
    recipe = dataclasses.replace(MLP, dtype="float16", optimizer=SGDConfig(lr=0.01), loss_scaling=scaling)
    updates, weights = DiagnoseUpdates(), Weights()
    train(recipe, data, device="cpu", listeners=[weights, updates])
    found, place = updates.found, updates.found.layers.index("classifier.weight")
    skipped = [bool((weights.copies[step]["classifier.weight"] == weights.copies[step - 1]["classifier.weight"]).all())
               for step in range(1, 13)]  # fmt: skip
    assert any(skipped)
    assert np.isnan(found.update[1:, place]).tolist() == skipped
    assert np.isfinite(found.smoothed[-1]).all() == (not all(skipped))


def test_no_layer_has_the_gradients_of_a_step_that_is_left_out(data):
    """Those that are finite are still multiplied by the scale of the loss."""
    scaling = LossScalingConfig(dynamic=True, initial=2.0**21)
    recipe = dataclasses.replace(DAVIDNET, dtype="float16", epochs=1, loss_scaling=scaling)
    updates = DiagnoseUpdates()
    train(recipe, data, device="cpu", listeners=[updates])
    found = updates.found
    skipped = np.isnan(found.gradient[1:]).all(axis=1)
    assert skipped.any() and not skipped.all()
    assert np.nanmax(found.gradient[1:]) < 100 and np.nanmax(found.smoothed) < 100


def test_where_only_ends_of_epochs_are_seen_there_are_displacements(data):
    """As on CUDA, where the steps between are replayed."""
    whole, updates = DiagnoseUpdates(moments=3), DiagnoseUpdates()
    seen = Listener(
        on_start=updates.on_start,
        on_step=lambda step, total: updates.on_step(step, total) if step % 4 == 0 else None,
        on_end=updates.on_end,
    )
    train(WIDER, data, device="cpu", listeners=[whole, seen])
    found = updates.found
    assert found.steps.tolist() == [0, 4, 8, 12]
    assert np.isnan(found.update).all()
    for name in ("weight", "displacement"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole.found, name))
    assert np.isfinite(found.gradient[1:]).all()
    assert found.figures()["size"].ylabel == "|w - v| / |v|"


def test_a_training_that_ends_early_has_its_last_moment(data):
    updates = DiagnoseUpdates(moments=1)
    trainer = Trainer(MLP, data, "cpu")
    trainer.run(listeners=[updates], until_train_accuracy=0.01)
    assert updates.found.steps.tolist() == [0, 4]
    assert np.isfinite(updates.found.weight).all()


@pytest.mark.parametrize(("epochs", "moments", "steps"), [
    (3, 6, [2, 4, 6, 8, 10, 12]), (3, 7, [2, 4, 6, 8, 10, 12]), (3, 3, [4, 8, 12]), (3, 2, [8, 12]), (3, 1, [12]),
    (1.5, 2, [4, 6]), (3, 100, range(1, 13)),
])  # fmt: skip
def test_moments_are_ends_of_epochs_and_of_equal_parts(data, epochs, moments, steps):
    updates = DiagnoseUpdates(moments=moments)
    assert updates.dues(Trainer(dataclasses.replace(MLP, epochs=epochs), data, "cpu").timeline) == [*steps]


def test_the_rates_of_lars_are_norms_of_weights_over_those_of_gradients(data):
    updates = DiagnoseUpdates()
    train(WIDER, data, device="cpu", listeners=[updates])
    found = updates.found
    places = [place for place, name in enumerate(found.layers) if name in found.about["weights"]]
    ratios = found.weight[5] / found.smoothed[5]
    np.testing.assert_allclose(found.lars_rate[5], ratios / np.median(ratios[places]))
    assert np.isnan(found.lars_rate[0]).all()
    assert np.median(found.lars_rate[5, places]) == pytest.approx(1)


def test_a_file_holds_what_was_found(data, tmp_path):
    updates = DiagnoseUpdates(tmp_path / "updates.npz")
    train(MLP, data, seed=2, device="cpu", listeners=[updates])
    kept = read_diagnosis(tmp_path / "updates.npz")
    assert (kept.kind, kept.layers, kept.about) == ("updates", updates.found.layers, updates.found.about)
    assert kept.about["seed"] == 2 and kept.about["total_steps"] == 12
    for name in kept.axes:
        np.testing.assert_array_equal(getattr(kept, name), getattr(updates.found, name))
    assert [path.name for path in tmp_path.iterdir()] == ["updates.npz"]


def test_a_training_that_goes_on_goes_on_in_the_file(data, tmp_path):
    def save(step, total):
        if step == 6:
            states.append(trainer.state.state_dict())

    states, whole, trainer = [], DiagnoseUpdates(tmp_path / "whole.npz"), Trainer(WIDER, data, "cpu")
    trainer.run(listeners=[whole, Listener(on_step=save)])
    trainer.run(resume=states[0], listeners=[DiagnoseUpdates(tmp_path / "whole.npz")])  # of a kill in a later step
    kept = read_diagnosis(tmp_path / "whole.npz")
    for name in kept.axes:
        np.testing.assert_array_equal(getattr(kept, name), getattr(whole.found, name))

    (tmp_path / "whole.npz").write_bytes(b"nonsense")
    late = DiagnoseUpdates(tmp_path / "whole.npz")
    with pytest.warns(Notice, match=r"whole\.npz.*the diagnosis begins at step 6"):
        trainer.run(resume=states[0], listeners=[late])
    assert late.found.steps.tolist() == list(range(6, 13))


def test_a_file_that_cannot_be_written_is_said_once(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(Notice, match="the training goes on") as said:
        train(MLP, data, device="cpu", listeners=[DiagnoseUpdates(tmp_path / "file" / "updates.npz")])
    assert len(said) == 1


def damaged(kept, change):
    arrays = {name: getattr(kept, name) for name in kept.axes}
    about = {"version": 1, "kind": "updates", "layers": list(kept.layers), **kept.about}
    change(arrays, about)
    return {**arrays, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}


@pytest.mark.parametrize(("change", "said"), [
    (lambda arrays, about: about.update(version=2), "is of version 2 and of kind 'updates'; allowed: version 1"),
    (lambda arrays, about: about.update(kind="other"), "of kind 'other'; allowed: version 1 of updates or activations"),
    (lambda arrays, about: about.update(layers="two"), "allowed: version 1"),
    (lambda arrays, about: arrays.pop("weight"), "weight is damaged: it is there 0 times"),
    (lambda arrays, about: arrays.update(rate=arrays["rate"][1:]), r"rate is float64 \[12\]; allowed: f8"),
    (lambda arrays, about: arrays.update(weight=arrays["weight"][:, 1:]), r"weight is float64 \[13, 3\]; allowed"),
    (lambda arrays, about: arrays.update(steps=arrays["steps"].astype(float)), r"steps is float64 \[13\]; allowed: i8"),
])  # fmt: skip
def test_any_other_file_is_refused(data, tmp_path, change, said):
    updates = DiagnoseUpdates()
    train(MLP, data, device="cpu", listeners=[updates])
    np.savez(tmp_path / "other.npz", **damaged(updates.found, change))
    with pytest.raises(UserError, match=said):
        read_diagnosis(tmp_path / "other.npz")


def test_what_is_wrong_is_refused_before_the_training(tmp_path):
    with pytest.raises(UserError, match="moments is -1; allowed: 0 or more"):
        DiagnoseUpdates(moments=-1)
    with pytest.raises(UserError, match="moments is 0; allowed: 1 or more"):
        DiagnoseForgetting(moments=0)
    with pytest.raises(UserError, match="nothing was measured yet"):
        _ = DiagnoseUpdates().found
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(UserError):
            read_diagnosis(path)


def test_figures_show_the_matrices(data, tmp_path, monkeypatch):
    updates = DiagnoseUpdates()
    train(WIDER, data, device="cpu", listeners=[updates])
    figures = updates.found.figures()
    assert [*figures] == ["size", "weight", "gradient", "rate"]
    labels = [line.label for line in figures["gradient"].lines if line.label]
    assert labels == updates.found.about["weights"]
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("fastcifar.report.figures.FORMATS", ("svg",))
    files = updates.found.draw(tmp_path)
    assert {path.name for path in files} >= {"updates-size.svg", "updates-rate.svg"}
    assert all(path.stat().st_size for path in files)
