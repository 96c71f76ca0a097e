"""Bounds are read from where a field is declared."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.recipes import NETWORKS, OPTIMIZERS, Augment, Recipe, recipe_from_dict, setting, to_toml, trick
from fastcifar.recipes.declare import Checked, Declaration, bounds, declaration, field_docs
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.text import tomllib

SECTIONS = [
    Recipe(),
    *(value for value in vars(Recipe()).values() if isinstance(value, Checked)),
    *(kind() for kinds in (NETWORKS, OPTIMIZERS) for kind in kinds.values()),
]


@pytest.mark.parametrize(
    ("declared", "whole", "words"),
    [
        (Declaration(at_least=0, below=32, unit="pixels"), True, "0 to 31 pixels"),
        (Declaration(at_least=1, unit="images"), True, "1 or more images"),
        (Declaration(above=0), True, "1 or more"),
        (Declaration(above=0), False, "above 0"),
        (Declaration(above=0, at_most=1), False, "above 0, up to 1"),
        (Declaration(above=0, below=1), False, "above 0, below 1"),
        (Declaration(at_least=0, below=1), False, "0 up to, not including, 1"),
        (Declaration(at_least=0, at_most=1), False, "0 to 1"),
        (Declaration(at_least=0), False, "0 or more"),
    ],
)
def test_bounds_are_told_in_words(declared, whole, words):
    assert bounds(declared, whole) == words


@given(value=st.integers(-3, 9) | st.floats(-3, 9))
def test_a_number_is_accepted_where_its_bounds_admit_it(value):
    @dataclass(frozen=True)
    class Section(Checked):
        number: float = setting(1.0, above=0, at_most=5)

    if 0 < value <= 5:
        assert Section(value).number == value
    else:
        with pytest.raises(UserError, match="allowed: above 0, up to 5"):
            Section(value)


def test_every_field_of_every_kind_has_its_docstring():
    for section in SECTIONS:
        fields = [field.name for field in dataclasses.fields(section)]
        own = {name for name in fields if not isinstance(getattr(section, name), Checked)}
        assert own <= field_docs(type(section)).keys(), type(section)


def test_every_trick_has_a_source_and_its_off_value_is_admitted():
    tricks = [
        (section, field, each)
        for section in SECTIONS
        for field in dataclasses.fields(section)
        for each in declaration(field).tricks
    ]
    assert len(tricks) > 30
    for section, field, each in tricks:
        assert each.source
        if not callable(each.off):
            without = dataclasses.replace(section, **{field.name: each.off})
            assert getattr(without, field.name) == each.off


def test_a_field_that_is_declared_has_its_default_for_readers_of_the_class():
    assert Recipe.label_smoothing == 0.2 and trick(3, off=0, source="a").default == 3


def test_lists_become_tuples_and_numpys_numbers_pythons():
    recipe = Recipe(
        batch_size=np.int64(64), epochs=np.float32(2.5), network=DavidNetConfig(widths=[np.int32(8), 8, 8, 8])
    )
    assert recipe == Recipe(batch_size=64, epochs=2.5, network=DavidNetConfig(widths=(8, 8, 8, 8)))
    assert [type(value) for value in (recipe.batch_size, recipe.epochs, recipe.network.widths[0])] == [int, float, int]
    assert recipe_from_dict(tomllib.loads(to_toml(recipe))) == recipe
    with pytest.raises(UserError, match=r"network\.widths is \(0, 0, 0, 0\); allowed: 1 to 65,536 channels each"):
        DavidNetConfig(widths=[0, 0, 0, 0])
    with pytest.raises(UserError, match="batch_size is 0; allowed: 1 or more images"):
        Recipe(batch_size=np.int64(0))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"augment": 3}, "augment is 3; allowed: a section of fields"),
        ({"network": "mlp"}, "network is 'mlp'; allowed: a section of fields"),
        ({"transforms": Recipe()}, "transforms is Recipe"),
    ],
)
def test_a_value_of_another_type_is_refused(fields, said):
    with pytest.raises(UserError) as refusal:
        Recipe(**fields)
    assert str(refusal.value).startswith(said)


def test_a_cutout_may_be_as_large_as_the_smallest_of_the_early_crops():
    assert Augment(cutout=16, early_crops=((16, 0.5),)).cutout == 16
    assert Augment(cutout=32, early_crops=((16, 0.5),), early="resize").cutout == 32  # rescaled with its image
