from dataclasses import replace

import pytest

from fastcifar.errors import UserError
from fastcifar.recipes import RECIPES, SUMMARIES, EMAConfig, Recipe, change, get_recipe, label, quick, to_toml
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers.muon import MuonConfig


def test_davidnet_is_the_default_recipe():
    assert get_recipe("davidnet") == Recipe()


def test_every_recipe_goes_by_its_own_name_and_has_one_line_on_it():
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}
    assert SUMMARIES.keys() == RECIPES.keys()
    assert all("\n" not in line and line for line in SUMMARIES.values())


def test_a_recipe_is_found_by_the_path_of_its_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(Recipe(name="other", epochs=3)))
    assert get_recipe(str(path)) == Recipe(name="other", epochs=3)


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(UserError) as refusal:
        get_recipe("davidnte")
    assert str(refusal.value) == (
        f"unknown recipe 'davidnte'; did you mean 'davidnet'?; allowed: {', '.join(RECIPES)}, or a .toml file's path"
    )
    with pytest.raises(UserError, match=r"^unknown recipe 'x'; allowed: davidnet"):
        get_recipe("x")


def test_the_warm_start_recipes_are_plain_gradient_descent_at_one_rate():
    for name, network in {"warmstart-resnet18": "resnet18", "warmstart-mlp": "mlp"}.items():
        recipe = get_recipe(name)
        assert (recipe.network.kind, recipe.epochs, recipe.batch_size) == (network, 350, 128)
        assert [recipe.optimizer.lr * recipe.schedule(progress) for progress in (0, 0.3, 1)] == [0.001] * 3
        assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay, recipe.optimizer.bias_lr_factor) == (0, 0, 1)
        assert (recipe.augment.crop, recipe.augment.flip, recipe.augment.cutout) == (0, "none", 0)
        assert (recipe.label_smoothing, recipe.ema.decay, recipe.evaluate.tta) == (0, 0, "none")


def test_quick_is_narrower_and_shorter_and_otherwise_the_same():
    full = Recipe()
    recipe, train_size = quick(full)
    assert recipe.network.widths == (16, 32, 64, 128)
    assert recipe.epochs < full.epochs
    assert recipe.batch_size <= train_size < 50_000
    assert recipe.optimizer.lr / recipe.batch_size == full.optimizer.lr / full.batch_size
    changed = {name: getattr(full, name) for name in ("epochs", "batch_size", "network", "optimizer", "ema")}
    assert replace(recipe, **changed) == full


def test_quick_leaves_muons_rate_and_scales_those_of_the_mean_loss():
    full = Recipe(optimizer=MuonConfig(lr=0.24, filter_decay=1e-3))
    recipe, _ = quick(full)
    ratio = recipe.batch_size / full.batch_size
    assert recipe.optimizer.lr == 0.24 and ratio < 1
    for name in ("bias_lr", "head_lr", "weight_decay", "filter_decay"):
        assert getattr(recipe.optimizer, name) == pytest.approx(ratio * getattr(full.optimizer, name))


def test_quick_lengthens_nothing():
    small = Recipe(epochs=1, batch_size=64, ema=EMAConfig(decay=0.5))
    recipe, _ = quick(small)
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer.lr, recipe.ema.decay) == (1, 64, small.optimizer.lr, 0.5)


@pytest.mark.parametrize(("ghost", "batch_size"), [(0, 128), (48, 96), (100, 100), (256, 256), (512, 512)])
def test_quick_keeps_whole_ghost_groups(ghost, batch_size):
    recipe, _ = quick(Recipe(batch_size=ghost * 3 or 512, network=DavidNetConfig(ghost_batch=ghost)))
    assert recipe.batch_size == batch_size


def test_a_network_named_after_the_recipe_stands_for_both_in_a_runs_name():
    assert label(change(Recipe(), {"network": "davidnet-interpolation"})) == "davidnet-interpolation"
    assert label(change(Recipe(), {"network": "mlp", "optimizer": "Adam"})) == "davidnet-mlp-Adam"
