import pytest

from fastcifar.errors import UserError
from fastcifar.recipes import (
    RECIPES,
    Augment,
    AverageConfig,
    EMAConfig,
    EvaluateConfig,
    LookaheadConfig,
    Recipe,
    SelectConfig,
    change,
    get_recipe,
)
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.recipes.page import tricks_page
from fastcifar.recipes.tricks import choose_tricks, tricks
from tests.small import TYPICAL


def test_davidnets_tricks():
    assert set(tricks(Recipe(augment=Augment(cutout=8)))) == {
        *("whitening", "ghost-batch", "frozen-scale", "activation", "early-pool", "final-max-pool", "residual"),
        *("weight-decay", "bias-rate", "label-smoothing", "crop", "flip", "cutout", "ema", "tta"),
    }


SPEEDRUN = Recipe(
    early_batches=(256,),
    network=SpeedrunConfig(residual=True, residual_after=True, ghost_batch=64),
    optimizer=MuonConfig(head_lr=256.0),
    augment=Augment(flip="alternating", brightness=0.1, early_crops=((24, 0.5),), early="resize"),
    ema=EMAConfig(decay=0.0),
    select=SelectConfig(keep=0.75),
    average=AverageConfig(epochs=1),
    lookahead=LookaheadConfig(every=5),
    evaluate=EvaluateConfig(tta="flip-crop"),
)


def test_the_speedrun_networks_tricks():
    assert set(tricks(SPEEDRUN)) == {
        *("whitening-bias", "ghost-batch", "frozen-scale", "activation", "final-max-pool", "residual", "dirac"),
        *("head-scale", "weight-decay", "weight-normalization", "muon", "label-smoothing", "crop", "flip"),
        *(
            "alternating-flip",
            "jitter",
            "early-crops",
            "early-resize",
            "early-batches",
            "selection",
            "average",
            "lookahead",
            "tta",
        ),
    }


def test_a_trick_of_several_fields_is_switched_off_in_all_of_them():
    off = tricks(SPEEDRUN)
    assert off["jitter"] == {"augment.brightness": 0.0, "augment.contrast": 0.0}
    assert off["activation"] == {"network.activation": "relu", "network.whitening_activation": "relu"}
    assert off["alternating-flip"] == {"augment.flip": "random"} and off["flip"] == {"augment.flip": "none"}
    assert off["early-crops"] == {"augment.early_crops": (), "early_batches": ()}
    by_visit = tricks(change(SPEEDRUN, {"augment.flip": "by-visit"}))
    assert by_visit["flip-by-visit"] == {"augment.flip": "alternating"} and by_visit["flip"] == {"augment.flip": "none"}
    head = change(SPEEDRUN, off["head-scale"])
    assert (head.network.head_std, head.network.logit_scale) == (0.0, 1 / 9)
    assert head.optimizer.head_lr / 9**2 == pytest.approx(256 / 256**2)  # rate times the square of the scale
    sgd = SGDConfig(lr=0.75, momentum=0.85, weight_decay=1.3e-3, bias_lr_factor=64.0)
    assert change(SPEEDRUN, off["muon"]).optimizer == sgd


@pytest.mark.parametrize("name", TYPICAL)
def test_without_a_trick_every_recipe_is_a_recipe_that_lacks_it(name):
    recipe = RECIPES[name]
    for trick, values in tricks(recipe).items():
        without = change(recipe, values)
        assert without != recipe
        assert trick not in tricks(without)


def test_a_trick_that_is_off_is_not_listed():
    assert tricks(RECIPES["warmstart-mlp"]) == {}
    whole = change(SPEEDRUN, {"augment.early_crops": (), "early_batches": ()})
    assert whole.augment.early == "resize" and "early-resize" not in tricks(whole)


def test_tricks_are_chosen_by_name():
    recipe = Recipe(augment=Augment(cutout=8))
    assert choose_tricks(recipe) == tricks(recipe)
    assert choose_tricks(recipe, ["ema", "cutout"]) == {"cutout": {"augment.cutout": 0}, "ema": {"ema.decay": 0.0}}
    with pytest.raises(UserError, match="davidnet has no trick 'cutuot'; did you mean 'cutout'"):
        choose_tricks(recipe, ["cutuot"])


def test_the_page_tells_every_trick_its_fields_and_its_source():
    page = tricks_page()
    for recipe in (*map(get_recipe, TYPICAL), SPEEDRUN):
        of_recipe = tricks_page(recipe)
        for name, fields in tricks(recipe).items():
            assert f"\n## {name}\n" in page and f"\n## {name}\n" in of_recipe
            assert any(f"`{path}`" in of_recipe for path in fields)
        assert of_recipe.count("\n## ") == len(tricks(recipe))
    part = page.partition("## cutout\n")[2].partition("\n##")[0]
    assert "`augment.cutout`: Side in pixels of a square" in part and "Source: DeVries and Taylor 2017" in part
    assert tricks_page(RECIPES["warmstart-mlp"]).count("##") == 0
