"""`stable-rate`, for real on a few synthetic images."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments import Diverged, Failed
from fastcifar.experiments.named.stable_rate import StableRate
from fastcifar.experiments.result import NotTrained
from fastcifar.recipes import to_toml
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.start import ColdStart
from fastcifar.training import Trainer
from tests.small import BARE, DAVIDNET, MLP

RECIPE = dataclasses.replace(BARE, epochs=1, network=DAVIDNET.network, optimizer=SGDConfig(lr=0.1))


def test_rates_double_until_a_training_diverges_and_no_further(dataset, trained, tmp_path, monkeypatch):
    run = Trainer.run

    def diverges(trainer, seed, *args, **kwargs):
        found = run(trainer, seed, *args, **kwargs)
        if trainer.recipe.optimizer.lr > (0.5 if trainer.recipe.network.norm else 0.1):
            raise NonFiniteLoss("the loss is nan")
        return found

    monkeypatch.setattr(Trainer, "run", diverges)
    monkeypatch.setattr("fastcifar.diagnose.curvature._MOST", 2)
    experiment = StableRate(recipe=RECIPE, runs=2, first_rate=0.1, doublings=4)
    result = experiment.run(dataset, tmp_path, holdout=64, device="cpu")
    assert experiment.rates == [0.1, 0.2, 0.4, 0.8, 1.6]
    rates = [recipe.optimizer.lr for recipe, seed in trained if seed == 0]
    assert rates == [0.1, 0.2, 0.4, 0.8, 0.1, 0.2]
    diverged, (left_out, _) = [result.outcomes[f"norm-x1/{rate}"] for rate in ("0.8", "1.6")]
    assert {type(each) for each in diverged} == {Diverged}
    assert left_out == NotTrained("norm-x1/0.8/seed-0 diverged: the loss is nan")
    assert result.outcomes["no-norm-x1/1.6"][0].reason == "no-norm-x1/0.2/seed-0 diverged: the loss is nan"
    assert result.counts == {"failed": 4, "diverged": 4}, "each start's first that does, of each seed"
    limits = {"norm-x1": 0.4, "no-norm-x1": 0.1}
    guessing = math.log(10)
    for name, limit in limits.items():
        losses = {rate: result.outcomes[f"{name}/{rate:g}"][0].loss for rate in experiment.rates if rate <= limit}
        assert result.stable(name)[0] == max([0, *(rate for rate, loss in losses.items() if loss < guessing)])
    assert result.n == 2 and all(len(found) == 2 for found in result.curvatures.values())
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["starts"]["norm-x1"]["curvatures"] == result.curvatures["norm-x1"]
    assert "norm-x1" in (tmp_path / "table.md").read_text()

    again = StableRate(recipe=RECIPE, runs=2, first_rate=0.1, doublings=4).run(dataset, tmp_path, holdout=64)
    assert again.curvatures == result.curvatures and len(trained) == 12
    assert len(again.figures()["loss"].lines) == 2
    for name in limits:
        means = {rate: loss.mean for rate, loss in again.losses(name).items()}
        assert max(means) == limits[name] and again.best(name) == min(means, key=means.get)

    (tmp_path / "norm-x1" / "0.1" / "seed-1.curvature.npz").unlink()
    anew = StableRate(recipe=RECIPE, runs=2, first_rate=0.1, doublings=4).run(dataset, tmp_path, holdout=64)
    assert anew.curvatures == result.curvatures and len(trained) == 13


def test_without_a_curvature_all_else_is_said():
    experiment = StableRate(recipe=RECIPE, runs=1, first_rate=0.1, doublings=0)
    result = experiment.result({"dataset": "few"}, {f"{start}/0.1": [] for start in experiment.starts})
    for job in experiment.jobs(None):
        result.add(job, Failed("no memory"), SimpleNamespace(found=lambda key, kind: None))
    assert result.curvatures == {"norm-x1": [None], "no-norm-x1": [None]} and result.n == 1
    assert [row[1:] for row in result.tables()[0].rows] == [("0", "-", "-", "-", "-")] * 2
    assert result.to_dict()["starts"]["norm-x1"]["best_rate"] is None
    failed = "2 runs failed and did not diverge, which says nothing of their rates (norm-x1/0.1: no memory)"
    assert result.remarks() == [failed]
    good = SimpleNamespace(loss=1.0, dataset=SimpleNamespace(classes=range(10)))
    outcomes = {"norm-x1/0.1": [good], "no-norm-x1/0.1": [Diverged("NaN")]}
    assert experiment.result({}, outcomes).remarks() == [
        "the highest rate, 0.1, is stable with norm-x1: more --doublings"
    ]


def test_other_networks_have_all_else_from_the_recipe(dataset, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcifar.diagnose.curvature._MOST", 2)
    network, narrowed = (DavidNetConfig(widths=(width,) * 4, ghost_batch=0) for width in (8, 2))
    (tmp_path / "other.toml").write_text(to_toml(dataclasses.replace(MLP, network=network)))
    monkeypatch.chdir(tmp_path)
    options = {"recipe": RECIPE, "runs": 1, "first_rate": 0.1, "doublings": 0, "narrow": True}
    experiment = StableRate(**options, norms=(True,), networks=("other.toml",))
    recipes = {"norm-x1": RECIPE, "other.toml-norm-x1": dataclasses.replace(RECIPE, network=narrowed)}
    assert experiment.trained_recipes() == recipes
    experiment.run(dataset, "runs", holdout=64, device="cpu")
    both = StableRate(**options).run(dataset, "runs", holdout=64, device="cpu")
    assert len(trained) == 3 and set(both.outcomes) == {"norm-x1/0.1", "no-norm-x1/0.1"}


def test_initial_weights_are_scaled_and_nothing_else(dataset):
    trainer = Trainer(RECIPE, dataset, "cpu")
    plain, scaled = (trainer.new_network(3, ColdStart(scale=scale)).state_dict() for scale in (1.0, 2.0))
    frozen = {name for name, each in trainer.network.named_parameters() if not each.requires_grad}
    for name, tensor in plain.items():
        factor = 2 if tensor.dim() > 1 and name not in frozen else 1
        assert torch.equal(scaled[name], factor * tensor)
    assert ColdStart(scale=2).describe() == {"mode": "cold", "scale": 2}
    assert ColdStart().describe() == {"mode": "cold"}


@pytest.mark.parametrize(("options", "said"), [
    ({"init_scales": (1, 1)}, "init_scales is .*; allowed: scales, of which no two have the same six digits"),
    ({"init_scales": (0,)}, "init_scales is .*; allowed: above 0"),
    ({"recipe": MLP}, "the network mlp has no batch norm that can be left out; allowed: one that has"),
    ({"norms": ()}, "norms is .*; allowed: true, false or both"),
    ({"norms": (True, True)}, "norms is .*; allowed: each of them once"),
    ({"networks": ("davidnet",)}, "networks has davidnet, with the network of the recipe; allowed: others"),
    ({"networks": ("myrtle-cutout", "myrtle-regularised"), "norms": (True,)},
     "networks has myrtle-cutout, with the network of myrtle-regularised; allowed: others"),
    ({"networks": ("myrtle-3x4",)}, "unknown recipe 'myrtle-3x4'; did you mean 'myrtle-3x3'.*"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        StableRate(**options)
    with pytest.raises(UserError, match="scale is 0; allowed: above 0"):
        ColdStart(scale=0)
