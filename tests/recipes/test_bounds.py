"""Every field that is declared anywhere is taken just inside its bounds and refused just outside them, however it is
given: the fields are those of the registries, so a new one is among them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import pytest

from fastcifar.cli import data_convert, data_info, data_list, data_verify, evaluate, flops, recipes, train
from fastcifar.cli.arguments import parse, read_recipe
from fastcifar.cli.experiment import read_options
from fastcifar.cli.options import CommandOptions, flag_of, own_fields
from fastcifar.errors import UserError
from fastcifar.experiments import EXPERIMENTS
from fastcifar.recipes import NETWORKS, OPTIMIZERS, TRANSFORMS, Recipe, change, read_toml
from fastcifar.recipes.declare import Checked, Declaration, bounds, declaration, is_optional, plain, type_hints
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.text import read_changes, recipe_from_dict, to_text, with_all_transforms
from fastcifar.training import RunRecord

BASE = Recipe(network=DavidNetConfig(ghost_batch=0))
RECORD = json.loads((Path(__file__).parents[1] / "training/version-1/run.json").read_text())
SECTIONS = [
    BASE,
    *(value for value in vars(BASE).values() if isinstance(value, Checked) and not hasattr(value, "kind")),
    *(kind() for kinds in (NETWORKS, OPTIMIZERS, TRANSFORMS) for kind in kinds.values()),
]
OPTIONS = [train.Options(), flops.Options(), evaluate.Options(), data_info.Options()]
OPTIONS += [data_list.Options(), data_verify.Options(), data_convert.Options()]
OPTIONS += [recipes.ListOptions(), recipes.ShowOptions(), recipes.TricksOptions()]
OTHERS = [*OPTIONS, *(cls() for cls in EXPERIMENTS.values())]
LENGTHS = {"normalize.mean": 3, "normalize.std": 3, "schedule.knots": 4, "schedule.values": 4}
"""Lists that are empty by default, or have as many entries as another."""
RULES = {"recipe", "network", "optimizer", "settings", "plugin", "experiment", "kind", "dataset"}
"""Options with rules of their own."""


def fields_of(sections):
    """Give each field with its section."""
    for section in sections:
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if field.init and not isinstance(value, Checked) and not (section not in SECTIONS and field.name in RULES):
                yield pytest.param(section, field, id=f"{type(section).__name__}.{field.name}")


def type_of(section, field):
    """The type of a field's value, and whether it may be a list or absent."""
    hint = type_hints(type(section))[field.name]
    if is_optional(hint):
        hint = get_args(hint)[0]
    return (get_args(hint)[0], True) if get_origin(hint) is tuple else (hint, False)


def as_given(section, field, number):
    """A value of the field in which each number is this one."""
    name = f"{section.section}.{field.name}"
    if not type_of(section, field)[1]:
        return number
    return (number,) * (LENGTHS.get(name) or len(getattr(section, field.name)) or 1)


def near(section, field):
    """Return the last numbers inside the bounds of a field, and the first outside."""
    declared, whole = declaration(field), type_of(section, field)[0] is int
    if whole and declared == Declaration():
        return [], [2**63]
    if whole:
        low = declared.at_least if declared.above is None else declared.above + 1
        high = declared.at_most if declared.below is None else declared.below - 1
        high = 2**63 - 1 if high is None else high
        return [each for each in (low, high) if each is not None], [low - 1] * (low is not None) + [high + 1]
    inside, outside = [], [math.nan, math.inf, -math.inf]
    for bound, is_in, away in (
        *((declared.at_least, True, -math.inf), (declared.at_most, True, math.inf)),
        *((declared.above, False, math.inf), (declared.below, False, -math.inf)),
    ):
        if bound is not None:
            numbers = float(bound), math.nextafter(bound, away)
            inside.append(numbers[not is_in])
            outside.append(numbers[is_in])
    return inside, outside


def wrong(section, field):
    """Give values of types that the field does not take."""
    kind, is_list = type_of(section, field)
    if is_list:
        yield from ("", 1.5, {"a": 1}, (None,), ({},))
    elif kind in (int, float):
        yield from (True, "", "x", (1, 2), {}, None, np.bool_(True), np.array([1, 2]))
        yield from (1.5, np.float64(1), 1.0) if kind is int else (complex(1), 10**400)
    elif kind is bool:
        yield from (1, 0, "true", None, np.int64(1), 1.0)
    elif get_origin(kind) is Literal:
        yield from ("", "nothing", 1, None, True)
    elif kind is str:
        yield from (1, None, True, ("a",), np.int64(1))


WAYS = {
    "library": lambda recipe, path, value, folder: change(recipe, {path: value}),
    "word": lambda recipe, path, value, folder: change(recipe, read_changes([f"{path}={to_text(value)}"])),
    "flag": lambda recipe, path, value, folder: read_recipe([flag_of(path), to_text(value)], "", default=recipe)[0],
    "file": lambda recipe, path, value, folder: read_toml(written(recipe, path, value, folder)),
    "record": lambda recipe, path, value, folder: RunRecord.from_json(recorded(recipe, path, value)).recipe,
}


def fields_with(recipe, path, value):
    fields = json.loads(json.dumps(dataclasses.asdict(recipe)))
    *sections, name = path.split(".")
    inside = fields
    for section in sections:
        inside = inside.setdefault(section, {})  # of a transform at its defaults
    inside[name] = value
    return fields


def written(recipe, path, value, folder):
    kinds = [f'{section}.kind = "{getattr(recipe, section).kind}"\n' for section in ("network", "optimizer")]
    others = [] if path == "network.ghost_batch" or recipe.network.kind != "davidnet" else ["network.ghost_batch = 0\n"]
    (folder / "davidnet.toml").write_text("".join([f"{path} = {to_text(value)}\n", *kinds, *others]))
    return folder / "davidnet.toml"


def recorded(recipe, path, value):
    return {**RECORD, "version": 3, "recipe": fields_with(recipe, path, value)}


def base_of(section):
    """The recipe that has this section, and the field's dotted prefix."""
    if section is BASE:
        return BASE, ""
    name = section.section.split(".")[0]
    if name == "transforms":
        return BASE, f"{section.section}."
    return dataclasses.replace(BASE, **{name: section}), f"{name}."


@pytest.mark.parametrize(("section", "field"), [*fields_of(SECTIONS)])
def test_a_field_of_a_recipe_is_taken_inside_its_bounds_and_refused_outside(section, field, tmp_path):
    recipe, prefix = base_of(section)
    path, declared = prefix + field.name, declaration(field)
    kind = type_of(section, field)[0]
    if kind in (int, float):
        inside, outside = near(section, field)
        for number in inside:
            value = as_given(section, field, number)
            try:
                assert getattr(dataclasses.replace(section, **{field.name: value}), field.name) == value
                change(recipe, {path: value})
            except UserError as error:
                assert bounds(declared, kind is int) not in str(error)  # another rule than the bounds
                continue
            for way in WAYS.values():
                found = with_all_transforms(way(recipe, path, value, tmp_path))
                for part in path.split("."):
                    found = getattr(found, part)
                assert found == value and type(plain(found)) is type(value)
        for number in outside:
            value = as_given(section, field, number)
            for call in (
                lambda value=value: dataclasses.replace(section, **{field.name: value}),
                *(lambda way=way, value=value: way(recipe, path, value, tmp_path) for way in WAYS.values()),
            ):
                with pytest.raises(UserError) as refusal:
                    call()
                said = str(refusal.value)
                assert f"{path} is {value!r}; allowed: " in said and said.isprintable()
                if math.isfinite(number) and number != 2**63:
                    assert bounds(declared, kind is int) in said
    for value in wrong(section, field):
        for call in (
            lambda value=value: dataclasses.replace(section, **{field.name: value}),
            lambda value=value: change(recipe, {path: value}),
            lambda value=value: recipe_from_dict(fields_with(recipe, path, value)),
        ):
            with pytest.raises(UserError, match=rf"{path} is .+; allowed: .+") as refusal:
                call()
            assert str(refusal.value).isprintable()


@pytest.mark.parametrize(("options", "field"), [*fields_of(OTHERS)])
def test_an_option_is_taken_inside_its_bounds_and_refused_outside(options, field):
    name, kind = field.name, type_of(options, field)[0]
    path = flag_of(name) if isinstance(options, CommandOptions) else name
    inside, outside = near(options, field) if kind in (int, float) else ((), ())
    for number in outside:
        with pytest.raises(UserError, match=rf"^{path} is .+; allowed: .+"):
            dataclasses.replace(options, **{name: as_given(options, field, number)})
    for number in inside:
        value = as_given(options, field, number)
        try:
            assert getattr(dataclasses.replace(options, **{name: value}), name) == value
        except UserError as error:
            assert bounds(declaration(field), kind is int) not in str(error)  # another rule than the bounds
    optional = is_optional(type_hints(type(options))[name])
    for value in wrong(options, field):
        if not (optional and value is None):
            with pytest.raises(UserError, match=rf"^{path} is .+; allowed: .+"):
                dataclasses.replace(options, **{name: value})


BOUNDED = [case for case in fields_of(OTHERS) if declaration(case.values[1]) != Declaration()]


@pytest.mark.parametrize(("options", "field"), BOUNDED)
def test_a_flag_is_refused_outside_its_bounds(options, field):
    if isinstance(options, CommandOptions):
        read = lambda args: parse(args, options, "fastcifar")  # noqa: E731
    elif field.name in own_fields(type(options)):
        words = ["davidnet"] * (2 if len(type(options).recipe_fields()) == 2 else 0)
        read = lambda args: read_options(type(options), [*words, *args])  # noqa: E731
    else:
        return
    for number in near(options, field)[1]:
        with pytest.raises(UserError, match=rf"^(--)?{field.name.rstrip('_').replace('_', '[_-]')} is .+; allowed: .+"):
            read([flag_of(field.name), str(number)])
