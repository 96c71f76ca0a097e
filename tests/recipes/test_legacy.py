"""Files from before sections had kinds are read, with one warning that names the renamed fields."""

import json
import warnings
from pathlib import Path

import pytest

from fastcifar.errors import RenamedWarning, UserError
from fastcifar.recipes import RECIPES, Recipe, change, read_toml, recipe_from_dict, to_toml
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.torch import AdamConfig
from fastcifar.recipes.text import tomllib

OLD_FORM = Path(__file__).parent / "old_form"


def test_an_old_recipe_file_is_read_with_one_line():
    path = OLD_FORM / "speedrun96.toml"
    with pytest.warns(RenamedWarning) as said:
        assert read_toml(path) == RECIPES["speedrun96"]
    [warning] = said
    assert str(warning.message) == (
        f"{path}: speedrun is now network; optim is now optimizer, its name kind; "
        "select.max_skips was removed; augment.early_sizes and early_shares are now augment.early_crops"
    )


def test_the_recipe_in_an_old_run_folder_is_read():
    values = json.loads((OLD_FORM / "warmstart-narrow.json").read_text())
    with pytest.warns(RenamedWarning):
        assert recipe_from_dict(values) == RECIPES["warmstart-narrow"]


@pytest.mark.parametrize("name", RECIPES)
def test_todays_form_is_read_without_a_word(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recipe_from_dict(tomllib.loads(to_toml(RECIPES[name]))) == RECIPES[name]


def test_fields_left_out_of_an_old_file_keep_the_old_defaults():
    with pytest.warns(RenamedWarning):
        recipe = recipe_from_dict({"network": "speedrun", "optim": {"name": "muon", "lr": 0.24}})
    assert recipe.network.kind == "speedrun"
    assert recipe.optimizer == MuonConfig(
        lr=0.24, momentum=0.9, weight_decay=5e-4, bias_lr=106.0, head_lr=1340.0, sgd_momentum=0.85
    )
    with pytest.warns(RenamedWarning):
        recipe = recipe_from_dict({"optim": {"name": "Adam"}, "model": {"widths": [8, 8, 8, 8]}})
    assert recipe.optimizer == AdamConfig(lr=1.0, weight_decay=5e-4, bias_lr_factor=64.0)
    assert recipe.network == DavidNetConfig(widths=(8, 8, 8, 8))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"select": {"max_skips": 2}}, "select.max_skips is 2; allowed: 0, the field was removed"),
        ({"augment": {"early_sizes": [24]}}, "augment.early_sizes is [24] and augment.early_shares (); allowed: aug"),
        ({"augment": {"early_sizes": 24}}, "augment.early_sizes is 24 and augment.early_shares (); allowed: augment"),
        ({"model": {}, "network": {"kind": "davidnet"}}, "model and network are both given; allowed: network"),
        ({"optim": {}, "optimizer": {"lr": 1}}, "optim and optimizer are both given; allowed: optimizer"),
        ({"optim": {"name": "Adan"}}, "optimizer.kind is 'Adan'; did you mean 'Adam'?; allowed: sgd"),
        ({"optim": {"lrr": 1}}, "unknown field optimizer.lrr; did you mean 'lr'?"),
        ({"optim": 3}, "unknown field optim; did you mean"),
        ({"network": "resnet", "model": {}}, "network.kind is 'resnet'; did you mean 'resnet18'?"),
    ],
)
@pytest.mark.filterwarnings("ignore::fastcifar.errors.RenamedWarning")
def test_a_bad_old_file_is_refused(values, said):
    with pytest.raises(UserError) as refusal:
        recipe_from_dict(values, "mine.toml")
    assert str(refusal.value).startswith(f"mine.toml: {said}")


def test_old_names_of_fields_are_understood():
    with pytest.warns(RenamedWarning, match="optim.lr is now optimizer.lr"):
        assert change(Recipe(), {"optim.lr": 0.1}) == change(Recipe(), {"optimizer.lr": 0.1})
    with pytest.warns(RenamedWarning, match="model.norm is now network.norm"):
        assert change(Recipe(), {"model.norm": False}) == change(Recipe(), {"network.norm": False})
    with pytest.warns(RenamedWarning, match="model is now network"):
        changed = change(Recipe(), {"model": {"widths": [8, 8, 8, 8]}})
    assert changed.network == DavidNetConfig(widths=(8, 8, 8, 8))


def test_an_old_name_of_another_network_is_refused():
    with pytest.raises(UserError, match=r"speedrun\.widths is of the network speedrun; allowed: fields of davidnet"):
        change(Recipe(), {"speedrun.widths": [8, 8, 8]})
    with pytest.warns(RenamedWarning):
        changed = change(Recipe(), {"speedrun.widths": [8, 8, 8], "network": "speedrun"})
    assert changed.network.widths == (8, 8, 8)
