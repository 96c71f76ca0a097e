"""Transforms are sections of their own, under their registered names."""

import copy
import dataclasses
import pickle
from dataclasses import dataclass

import pytest

from fastcifar.errors import UserError
from fastcifar.recipes import Recipe, TransformConfig, change, recipe_from_dict, to_toml, transform, trick
from fastcifar.recipes.page import tricks_page
from fastcifar.recipes.text import field_hints, read_changes, tomllib
from fastcifar.recipes.tricks import tricks
from tests import kinds


@dataclass(frozen=True)
class GreyConfig(TransformConfig):
    """Images that lose their color."""

    share: float = trick(0.0, off=0.0, at_least=0, at_most=1, source="Krizhevsky 2012")
    """Share of the images."""


@dataclass(frozen=True)
class BlurConfig(TransformConfig):
    """Images that lose their edges."""

    sigma: float = trick(0.0, off=0.0, at_least=0, source="Chen 2020")
    """Width in pixels, at most."""
    share: float = 0.5
    """Share of the images."""


@pytest.fixture(autouse=True)
def grey_and_blur():
    with kinds.forgotten():
        transform("grey", lambda images, numbers, config: images)(GreyConfig)
        transform("blur", "nowhere:blur")(BlurConfig)
        yield


def test_a_transform_is_a_section_with_flags_a_toml_form_and_a_trick():
    assert {"transforms.grey.share", "transforms.blur.sigma"} <= field_hints(Recipe()).keys()
    recipe = change(Recipe(), read_changes(["transforms.grey.share=0.3"]))
    assert list(recipe.transforms) == [GreyConfig(0.3)]
    assert "[transforms.grey]" in to_toml(recipe) and "share = 0.3" in to_toml(recipe)
    assert recipe_from_dict(tomllib.loads(to_toml(recipe))) == recipe
    assert recipe_from_dict(dataclasses.asdict(recipe)) == recipe
    assert tricks(recipe)["grey"] == {"transforms.grey.share": 0.0} and "blur" not in tricks(recipe)
    assert "Krizhevsky 2012" in tricks_page(recipe) and "## blur" in tricks_page()


def test_a_recipe_whose_transforms_are_off_equals_one_that_never_had_any():
    on = change(Recipe(), {"transforms.grey.share": 0.3, "transforms.blur": {"sigma": 1.0}})
    assert list(on.transforms) == [GreyConfig(0.3), BlurConfig(1.0)]
    assert change(on, {"transforms.grey.share": 0.0, "transforms.blur.sigma": 0.0}) == Recipe()
    assert "transforms" not in to_toml(Recipe())


def test_a_transform_keeps_its_settings_while_it_is_off():
    off = change(Recipe(), {"transforms.blur.share": 0.25})
    assert list(off.transforms) == [] and recipe_from_dict(tomllib.loads(to_toml(off))) == off
    assert change(off, {"transforms.blur.sigma": 1.0}).transforms.blur == BlurConfig(1.0, 0.25)


def test_a_recipe_holds_no_transform_that_it_does_not_use():
    recipe = change(Recipe(), {"transforms.grey.share": 0.3})
    assert dataclasses.asdict(recipe)["transforms"].keys() == {"grey"}
    transform("later", "nowhere:later")(LaterConfig)
    assert change(Recipe(), {"transforms.grey.share": 0.3}) == recipe == change(recipe, {})


@dataclass(frozen=True)
class LaterConfig(TransformConfig):
    """Registered after a recipe was made."""

    share: float = trick(0.0, off=0.0, source="nobody")


def test_recipes_with_transforms_are_copied_and_pickled():
    recipe = change(Recipe(), {"transforms.blur.sigma": 1.0, "transforms.blur.share": 1.0})
    assert copy.deepcopy(recipe) == recipe
    assert pickle.loads(pickle.dumps(recipe.transforms)) == recipe.transforms
    assert hash(recipe) == hash(copy.deepcopy(recipe))


def test_bad_transforms_are_refused_in_one_line():
    for words, said in (
        ("transforms.gray.share=1", "unknown field transforms.gray; did you mean 'grey'?"),
        ("transforms.grey.share=2", "transforms.grey.share is 2.0; allowed: 0 to 1"),
        ("transforms.grey.sher=1", "unknown field transforms.grey.sher; did you mean 'share'?"),
    ):
        with pytest.raises(UserError, match=said.replace("?", r"\?")):
            change(Recipe(), read_changes([words]))
    with pytest.raises(UserError, match="the transform's name is 'not-python'; allowed: a Python name"):
        transform("not-python", "a:b")(GreyConfig)

    @dataclass(frozen=True)
    class OnConfig(TransformConfig):
        share: float = trick(1.0, off=0.0, source="nobody")

    with pytest.raises(UserError, match="the transform always is on by default"):
        transform("always", "a:b")(OnConfig)
