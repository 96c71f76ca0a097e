"""`ablate`, for real on a few synthetic images."""

import dataclasses
import json

import pytest

from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments import Diverged
from fastcifar.experiments.named.ablate import Ablate
from fastcifar.recipes import Augment, EMAConfig, Recipe, change
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.training import Trainer

RECIPE = Recipe(
    name="small",
    epochs=1,
    batch_size=32,
    network=MLPConfig(hidden=(8,)),
    augment=Augment(cutout=8),
    optimizer=SGDConfig(lr=0.05, weight_decay=0.0),
    ema=EMAConfig(decay=0.5),
)
TRICKS = ["label-smoothing", "crop", "flip", "cutout", "bias-rate", "ema", "tta"]


def ablate(recipe, dataset, folder=None, holdout=None, **options):
    return Ablate(recipe=recipe, **options).run(dataset, folder, holdout=holdout, device="cpu")


def test_every_trick_but_tta_is_an_arm_in_turn_with_shared_seeds(dataset, trained, tmp_path):
    result = ablate(RECIPE, dataset, runs=2, folder=tmp_path, holdout=64)
    assert list(result.experiment.off) == TRICKS
    assert set(result.outcomes) == {"full", *TRICKS} - {"tta"}
    assert len(trained) == 2 * 7
    assert [seed for _, seed in trained] == [0] * 7 + [1] * 7
    for trick, values in result.experiment.off.items():
        if trick != "tta":
            assert (change(RECIPE, values), 0) in trained
    for record in result.outcomes["cutout"]:
        assert record.recipe.augment.cutout == 0
        assert record.dataset.holdout == 64

    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["full", *(f"no-{trick}" for trick in TRICKS)]
    cutout = next(row for row in rows if row["arm"] == "no-cutout")
    full, without = result.outcomes["full"], result.outcomes["cutout"]
    differences = [b.tta_accuracy - a.tta_accuracy for a, b in zip(full, without, strict=True)]
    assert cutout["accuracy"]["mean"] == pytest.approx(sum(differences) / 2)
    assert cutout["accuracy"]["n"] == 2 and len(cutout["accuracy"]["interval"]) == 2
    assert cutout["time_ratio"] > 0
    table = (tmp_path / "table.md").read_text()
    assert all(f"| no {trick} |" in table for trick in TRICKS)


def test_tta_needs_no_run_of_its_own(dataset, trained):
    result = ablate(RECIPE, dataset, runs=3, only=["tta"], holdout=64)
    assert len(trained) == 3
    effect = result.effect("tta")
    full = result.outcomes["full"]
    assert effect.accuracy.mean == pytest.approx(sum(run.accuracy - run.tta_accuracy for run in full) / 3)
    assert (effect.loss, effect.time_ratio) == (None, None)


def test_more_runs_and_other_tricks_add_to_what_is_kept(dataset, trained, tmp_path):
    ablate(RECIPE, dataset, runs=1, folder=tmp_path, only=["cutout"], holdout=64)
    assert len(trained) == 2
    result = ablate(RECIPE, dataset, runs=2, folder=tmp_path, only=["cutout", "flip"], holdout=64)
    assert len(trained) == 6
    assert (result.n, len(result.outcomes["flip"])) == (2, 2)
    with pytest.raises(UserError, match=r"recipe\.epochs is 1.0 there and 2 now"):
        ablate(dataclasses.replace(RECIPE, epochs=2), dataset, runs=1, folder=tmp_path, holdout=64)


def test_a_trick_without_which_the_loss_diverges_is_counted_as_such(dataset, monkeypatch):
    run = Trainer.run

    def diverging(trainer, seed, *args, **kwargs):
        if trainer.recipe.augment.cutout == 0 and seed != 1:
            raise NonFiniteLoss("the loss became nan")
        return run(trainer, seed, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", diverging)
    effect = ablate(RECIPE, dataset, runs=3, only=["cutout"], holdout=64).effect("cutout")
    assert (effect.diverged, effect.accuracy.n) == (2, 1)
    effect = ablate(RECIPE, dataset, runs=1, only=["cutout"], holdout=64).effect("cutout")
    assert (effect.diverged, effect.accuracy, effect.time_ratio) == (1, None, None)
    with pytest.raises(NonFiniteLoss, match="full with seed 0"):
        ablate(dataclasses.replace(RECIPE, augment=Augment()), dataset, runs=1, holdout=64)


def test_the_table_begins_with_what_costs_most(new_record):
    def runs(*accuracies):
        return [
            new_record(accuracy=0.85, tta_accuracy=accuracy, tta_loss=1 - accuracy, train_seconds=2.0)
            for accuracy in accuracies
        ]

    ablation = Ablate(recipe=RECIPE, only=("crop", "flip", "cutout"))
    outcomes = {"full": runs(0.9, 0.91), "crop": runs(0.89, 0.9), "flip": runs(0.8, 0.8)}
    outcomes["cutout"] = [Diverged("the loss became nan")] * 2
    (table,) = ablation.result({}, outcomes).tables()
    assert [row[0] for row in table.rows] == ["full", "no cutout", "no flip", "no crop"]
    assert table.rows[1][1] == "diverged"
    assert table.rows[3][1:] == ("-1.00 ± 0.00", "+0.0100 ± 0.0000", "1.000")


def test_a_trick_that_the_recipe_has_not_is_refused(dataset):
    with pytest.raises(
        UserError, match=r"small has no trick 'cutouts'; did you mean 'cutout'\?; allowed: label-smoothing, "
    ):
        ablate(RECIPE, dataset, only=["cutouts"])
