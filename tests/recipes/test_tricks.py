import dataclasses

import pytest

from fastcifar.recipes import (
    RECIPES,
    Augment,
    AverageConfig,
    EMAConfig,
    EvaluateConfig,
    LookaheadConfig,
    OptimConfig,
    Recipe,
    SelectConfig,
    SpeedrunConfig,
)
from fastcifar.recipes.change import change
from fastcifar.recipes.tricks import tricks


def test_davidnets_tricks():
    assert set(tricks(Recipe(augment=Augment(cutout=8)))) == {
        *("whitening", "ghost-batch", "frozen-scale", "activation", "final-max-pool", "residual"),
        *("weight-decay", "bias-rate", "label-smoothing", "crop", "flip", "cutout", "ema", "tta"),
    }


def test_the_speedrun_networks_tricks():
    recipe = Recipe(
        network="speedrun",
        speedrun=SpeedrunConfig(residual=True, ghost_batch=64),
        optim=OptimConfig(name="muon"),
        augment=Augment(flip="alternating", brightness=0.1, early_sizes=(24,), early_shares=(0.5,)),
        ema=EMAConfig(decay=0.0),
        select=SelectConfig(keep=0.75),
        average=AverageConfig(epochs=1),
        lookahead=LookaheadConfig(every=5),
        evaluate=EvaluateConfig(tta="flip-crop"),
    )
    assert set(tricks(recipe)) == {
        *("whitening-bias", "ghost-batch", "frozen-scale", "activation", "final-max-pool", "residual", "dirac"),
        *("head-scale", "weight-decay", "weight-normalisation", "muon", "label-smoothing", "crop", "flip"),
        *("alternating-flip", "jitter", "early-crops", "selection", "average", "lookahead", "tta"),
    }
    without = change(recipe, tricks(recipe)["alternating-flip"])
    assert without.augment.flip == "random"
    assert change(recipe, tricks(recipe)["muon"]).optim.name == "sgd"


@pytest.mark.parametrize("name", RECIPES)
def test_without_a_trick_every_recipe_is_a_recipe_that_lacks_it(name):
    recipe = RECIPES[name]
    for trick, values in tricks(recipe).items():
        without = change(recipe, values)
        assert without != recipe
        assert trick not in tricks(without)


def test_what_is_off_is_no_trick():
    bare = dataclasses.replace(RECIPES["warmstart-mlp"])
    assert tricks(bare) == {}
