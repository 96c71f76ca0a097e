import pytest

from fastcifar.errors import UserError
from fastcifar.recipes import RECIPES, SUMMARIES, Recipe, get_recipe, quick, to_toml


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
        "unknown recipe 'davidnte'; did you mean 'davidnet'?; allowed: davidnet, or a .toml file's path"
    )
    with pytest.raises(UserError, match=r"^unknown recipe 'x'; allowed: davidnet"):
        get_recipe("x")


def test_quick_is_narrower_and_shorter_and_otherwise_the_same():
    recipe, train_size = quick(RECIPES["davidnet"])
    assert recipe.model.widths == (16, 32, 64, 128)
    assert recipe.epochs < 10
    assert recipe.batch_size <= train_size < 50_000
    assert (recipe.name, recipe.augment, recipe.ema) == ("davidnet", Recipe().augment, Recipe().ema)


def test_quick_never_lengthens_a_recipe():
    assert quick(Recipe(epochs=1))[0].epochs == 1
