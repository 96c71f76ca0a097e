"""`verify_tricks`, for real on a few synthetic images."""

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss, UserError
from fastcifar.experiments.named import verify
from fastcifar.experiments.named.verify import Verify
from fastcifar.recipes import (
    RECIPES,
    TRANSFORMS,
    Recipe,
    SelectConfig,
    TransformConfig,
    change,
    transform,
    trick,
)
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.training import Trainer
from fastcifar.training.timeline import Timeline

RECIPE = change(
    Recipe(name="small"),
    {
        "batch_size": 16,
        "network": {"kind": "mlp", "hidden": [8]},
        "optimizer": {"lr": 0.05, "weight_decay": 1e-3},
        "augment.cutout": 8,
        "select": {"keep": 0.6, "from_epoch": 4.0},
    },
)
TRICKS = ["label-smoothing", "crop", "flip", "cutout", "weight-decay", "bias-rate", "ema", "selection", "tta"]


def verify_tricks(recipe, dataset, **options):
    return Verify(recipe=recipe, **options).run(dataset, device="cpu")


@pytest.fixture(scope="module")
def dataset():
    return make_synthetic(train_size=300, test_size=32)


@pytest.fixture
def trained(monkeypatch):
    """The trainers of all runs."""
    trainers, run = [], Trainer.run

    def noted(trainer, *args, **kwargs):
        trainers.append(trainer)
        return run(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", noted)
    return trainers


def test_every_trick_is_switched_off_once_and_changes_a_loss(dataset, trained):
    result = verify_tricks(RECIPE, dataset)
    assert sorted(effect.trick for effect in result.tricks) == sorted(TRICKS)
    assert all(effect.seen and effect.noise == 0 < effect.change for effect in result.tricks)
    assert result.without_effect == []
    assert len(trained) == len(TRICKS) + 1  # all tricks twice; tta needs no run
    epochs, images = verify.shorten(RECIPE, 32)
    assert {len(trainer.dataset.train) for trainer in trained} == {images}
    assert {trainer.recipe.epochs for trainer in trained} == {epochs}
    assert {trainer.dataset.holdout for trainer in trained} == {64}


@pytest.fixture
def idle(monkeypatch):
    """The small recipe with a transform that changes nothing."""
    monkeypatch.setattr(TRANSFORMS, "_values", dict(TRANSFORMS))

    @transform("idle", lambda images, numbers, config: images)
    @dataclass(frozen=True)
    class IdleConfig(TransformConfig):
        amount: float = trick(0.0, off=0.0, at_least=0, source="nobody")

    return change(RECIPE, {"transforms.idle.amount": 1.0})


def test_a_trick_that_does_nothing_is_found(dataset, idle):
    result = verify_tricks(idle, dataset, only=["cutout", "idle"])
    assert result.without_effect == ["idle"]
    assert [row["seen"] for row in result.rows()] == [True, False]
    assert ("idle", "transforms.idle.amount = 0.0", "0.0e+00", "NO EFFECT") in result.tables()[0].rows


def test_only_some_and_an_unknown_one(dataset, trained):
    result = verify_tricks(RECIPE, dataset, only=["tta"])
    assert [effect.trick for effect in result.tricks] == ["tta"]
    assert len(trained) == 2
    with pytest.raises(UserError, match="small has no trick 'cutuot'; did you mean 'cutout'"):
        verify_tricks(RECIPE, dataset, only=["cutuot"])
    with pytest.raises(UserError, match=r"warmstart-mlp uses no trick that can be switched off; allowed: a recipe th"):
        Verify(recipe=RECIPES["warmstart-mlp"])


def test_without_a_trick_the_training_may_diverge_but_with_all_it_must_not(dataset, monkeypatch):
    run = Trainer.run

    def diverges(trainer, *args, **kwargs):
        if not trainer.recipe.augment.cutout:
            raise NonFiniteLoss("the loss became nan")
        return run(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", diverges)
    result = verify_tricks(RECIPE, dataset, only=["cutout"])
    (effect,) = result.tricks
    assert effect.seen
    assert result.rows()[0]["change"] is None
    assert result.tables()[0].rows == (("cutout", "augment.cutout = 0", "diverged", "ok"),)
    with pytest.raises(NonFiniteLoss, match="full with seed 0"):
        verify_tricks(change(RECIPE, {"augment.cutout": 0}), dataset)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_few_images_and_epochs_have_all_stages_of_a_recipe(recipe):
    epochs, images = verify.shorten(recipe, 32)
    short, whole = Timeline(dataclasses.replace(recipe, epochs=epochs), images, 32), Timeline(recipe, 50_000, 32)

    assert {epoch.stage for epoch in short.epochs} == {epoch.stage for epoch in whole.epochs}
    assert {epoch.visits is None for epoch in short.epochs} == {epoch.visits is None for epoch in whole.epochs}
    assert 20 <= short.total_steps <= 30


@given(
    st.floats(0.5, 400) | st.integers(1, 400),
    st.integers(1, 2000),
    st.floats(0.1, 1, exclude_min=True),
    st.integers(1, 9),
)
def test_any_recipe_can_be_shortened(epochs, batch_size, keep, from_epoch):
    recipe = Recipe(network=MLPConfig(), epochs=epochs, batch_size=batch_size, select=SelectConfig(keep, from_epoch))
    short, images = verify.shorten(recipe, 32)
    assert min(10, epochs) <= short <= epochs
    assert Timeline(dataclasses.replace(recipe, epochs=short), images, 32).total_steps >= 20


def test_epochs_are_enough_for_what_begins_late():
    recipe = Recipe(epochs=30.0, select=SelectConfig(keep=0.5, from_epoch=14))
    epochs, images = verify.shorten(recipe, 32)
    assert any(epoch.visits for epoch in Timeline(dataclasses.replace(recipe, epochs=epochs), images, 32).epochs)


def test_an_effect_is_ten_times_what_has_no_cause():
    """On a GPU, where two trainings differ a little."""
    seen = {change: verify.VerifiedTrick("crop", {}, change, noise=0.01).seen for change in (0.02, 0.09, 0.11)}
    assert seen == {0.02: False, 0.09: False, 0.11: True}


def test_too_few_images_are_refused_with_the_number_that_it_takes(trained):
    _, images = verify.shorten(RECIPE, 32)
    few, enough = (make_synthetic(train_size=images + more, test_size=32) for more in (63, 64))
    with pytest.raises(UserError, match=rf"^synthetic has {images - 1} training images; allowed: {images} or more"):
        verify_tricks(RECIPE, few, only=["tta"])
    assert trained == []
    assert len(verify_tricks(RECIPE, enough, only=["tta"]).tricks) == 1
