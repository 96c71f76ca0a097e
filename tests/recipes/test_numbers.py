"""Numbers of numpy and torch in every field of every section: they are Python's there, or refused."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from fastcifar.errors import UserError
from fastcifar.recipes import NETWORKS, OPTIMIZERS, RECIPES, TRANSFORMS, Recipe, change
from fastcifar.recipes.declare import Checked, plain, sections_of, type_hints

SECTIONS = {type(section): section for recipe in (Recipe(), *RECIPES.values()) for _, section in sections_of(recipe)}
SECTIONS |= {kind: kind() for kinds in (NETWORKS, OPTIMIZERS, TRANSFORMS) for kind in kinds.values()}
ARRAYS = {"numpy": np.array, "torch": lambda value: torch.from_numpy(np.array(value))}


def given(value, array):
    """Return a field's value as a user of numpy or torch has it: whole, and in a list the numbers one by one."""
    if isinstance(value, str) or value == () or (isinstance(value, tuple) and isinstance(value[0], str)):
        return [value]
    if isinstance(value, tuple):
        ragged = any(isinstance(each, tuple) for each in value)
        one_by_one = [given(each, array)[0] for each in value]
        return [one_by_one] if ragged else [one_by_one, array(value)]
    return [array(value)]


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("section", SECTIONS.values(), ids=[kind.__name__ for kind in SECTIONS])
def test_every_field_takes_numbers_of_numpy_and_torch(section, array):
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if field.init and not isinstance(value, Checked):
            for each in given(value, array):
                made = dataclasses.replace(section, **{field.name: each})
                found = getattr(made, field.name)
                assert made == section
                assert json.loads(json.dumps(found)) == json.loads(json.dumps(plain(found)))


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_a_changed_recipe_is_the_same_as_with_pythons_numbers(array):
    changes = {
        "epochs": 3,
        "batch_size": 256,
        "drop_last": False,
        "network.widths": [8, 16, 32, 64],
        "optimizer.lr": 0.5,
        "normalize.std": [1.0, 2.0, 4.0],
        "evaluate.tta_share": 0.25,
    }
    expected = change(Recipe(), changes)
    made = change(Recipe(), {name: array(value) for name, value in changes.items()})
    assert made == expected and repr(made) == repr(expected)
    assert change(Recipe(), {"augment": {"early_crops": [[np.int64(24), np.float32(0.5)]]}}).augment.early_crops == (
        (24, 0.5),
    )


WRONG = {
    "epochs": [np.float32("nan"), torch.tensor(float("inf")), torch.tensor([1.0, 2.0]), np.str_("3")],
    "batch_size": [torch.tensor(True), np.array(["512"])],
    "drop_last": [torch.tensor(1), np.str_("true")],
    "dtype": [np.array(["auto"]), np.dtype("float32"), torch.float32],
}
"""Beside those of tests/recipes/test_bounds.py."""


@pytest.mark.parametrize(
    ("name", "value"), [(name, each) for name, values in WRONG.items() for each in values], ids=repr
)
def test_what_is_of_another_type_is_refused_in_a_line(name, value):
    for call in (lambda: Recipe(**{name: value}), lambda: change(Recipe(), {name: value})):
        with pytest.raises(UserError, match=rf"{name} is .*; allowed: ") as refusal:
            call()
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_sections_and_recipes_are_copied_and_pickled(make):
    for value in (*RECIPES.values(), *SECTIONS.values()):
        assert make(value) == value


def test_a_words_type_is_pythons():
    assert type(Recipe(name=np.str_("mine")).name) is str and type_hints(Recipe)["name"] is str
