"""`forgetting`, for real on a few synthetic images."""

import dataclasses
import json

import pytest

from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments.named.forgetting import ForgettingGrid
from fastcifar.experiments.store import Store
from fastcifar.recipes import Schedule
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.training import Trainer
from tests.small import BARE, DAVIDNET, MLP

RECIPE = dataclasses.replace(BARE, epochs=1, network=MLP.network, optimizer=SGDConfig(lr=0.1))


def grid(**options):
    return ForgettingGrid(**{"recipe": RECIPE, "runs": 2, "batch_sizes": (16, 32), "rates": (0.5, 4.0), **options})


def test_every_batch_size_has_every_rate_by_image(dataset, trained, tmp_path, monkeypatch):
    run = Trainer.run

    def diverges(trainer, seed, *args, **kwargs):
        if trainer.recipe.batch_size == 32 and trainer.recipe.optimizer.lr > 0.3:
            raise NonFiniteLoss("the loss is nan")
        return run(trainer, seed, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", diverges)
    own = RECIPE.optimizer.lr / RECIPE.batch_size
    experiment = grid()
    result = experiment.run(dataset, tmp_path, holdout=64, device="cpu")
    for (size, rate), recipe in experiment.recipes.items():
        assert recipe.batch_size == size and recipe.optimizer.lr == pytest.approx(own * rate * size)
        assert recipe.schedule.values == (0, 1, 1) and recipe.optimizer.momentum == RECIPE.optimizer.momentum
    diverging = [point for point, recipe in experiment.recipes.items() if recipe.optimizer.lr > 0.3 and point[0] == 32]
    assert diverging == [(32, 4.0)] and len(result.failed) == 2 and result.n == 2
    assert result.best(32) == 0.5
    fresh = {rate: result.summary(16, rate, "fresh").mean for rate in experiment.rates}
    assert result.best(16) == min(fresh, key=fresh.get)
    assert result.summary(32, 4.0, "fresh") is None
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [point["fresh"] and point["fresh"]["n"] for point in kept["points"]] == [2, 2, 2, None]
    assert kept["best_rate_by_image"] == {"16": result.best(16), "32": 0.5}
    table = (tmp_path / "table.md").read_text()
    assert "(2 diverged)" in table and "an end of the rates" in table
    assert len(result.figures()["loss"].lines) == 4

    (tmp_path / "batch-16" / "0.5" / "seed-0.forgetting.npz").unlink()
    count = len(trained)
    (tmp_path / "batch-16" / "4" / "seed-1.forgetting.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"seed-1.forgetting.npz.*; allowed: to delete it, as its run is trained again"):
        grid().run(dataset, tmp_path, holdout=64, device="cpu")
    (tmp_path / "batch-16" / "4" / "seed-1.forgetting.npz").unlink()
    again = grid(rates=(0.5, 1.0, 4.0)).run(dataset, tmp_path, holdout=64, device="cpu")
    assert len(trained) == count + 4 + 2  # the new rate, and the runs whose losses are gone
    assert [again.summary(16, rate, "fresh") for rate in (0.5, 4.0)] == [
        result.summary(16, rate, "fresh") for rate in (0.5, 4.0)
    ]


def test_what_could_not_be_written_is_not_known_and_all_else_is(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "found", lambda store, key, kind: None)
    result = grid(runs=1).run(dataset, tmp_path, holdout=64, device="cpu")
    assert result.n == 1 and result.summary(16, 0.5, "fresh") is None and result.best(16) is None
    assert (tmp_path / "table.md").is_file()


def test_the_rate_stays_whatever_the_schedule_was():
    cosine = dataclasses.replace(RECIPE, schedule=Schedule(name="CosineAnnealingLR"))
    assert grid(recipe=cosine).recipes == grid().recipes


@pytest.mark.parametrize(("options", "said"), [
    ({"batch_sizes": ()}, "batch_sizes is .*; allowed: numbers, of which no two"),
    ({"rates": (1.0, 1.0)}, "rates is .*; allowed: numbers, of which no two"),
    ({"rates": (0.0,)}, "rates is .*; allowed: above 0"),
    ({"recipe": dataclasses.replace(RECIPE, epochs=1.5)}, "epochs is 1.5; allowed: a whole number, as the last"),
    ({"recipe": dataclasses.replace(DAVIDNET, optimizer=MuonConfig())}, "the rate of muon is not in proportion to the"),
    ({"recipe": DAVIDNET, "batch_sizes": (DAVIDNET.batch_size + 1,)}, "batch_size is 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        grid(**options)
