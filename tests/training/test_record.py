"""A record goes to JSON and back, older ones are read, and whatever else is refused by the name of its field."""

import copy
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcifar
from fastcifar import record as record_module
from fastcifar.errors import Notice, RenamedWarning, UserError
from fastcifar.output import read_json, read_lines
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.record import VERSION, Versions, commit_of
from fastcifar.training import EpochRow, RunRecord

FIRST = json.loads((Path(__file__).parent / "version-1/run.json").read_text())
"""As it was written before records had a version."""
SIMPLE = {
    int: st.integers(-(2**63) + 1, 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=9),
}
SIMPLE |= {bool: st.booleans(), object: st.none() | st.booleans() | st.integers() | st.text(max_size=9)}

pytestmark = pytest.mark.filterwarnings("ignore::fastcifar.errors.RenamedWarning")  # of the first version


def anything(hint):
    """Return a strategy for values of the type `hint`."""
    kinds = get_args(hint)
    if NoneType in kinds:
        return st.none() | anything(kinds[0])
    if hint is Recipe:
        return st.sampled_from(list(RECIPES.values()))
    if dataclasses.is_dataclass(hint):
        fields = {name: anything(kind) for name, kind in get_type_hints(hint).items()}
        return st.builds(hint, **{**fields, **({"version": st.just(VERSION)} if hint is RunRecord else {})})
    if get_origin(hint) is tuple:
        return st.lists(anything(kinds[0]), max_size=3).map(tuple)
    return st.dictionaries(st.text(max_size=9), anything(kinds[1]), max_size=3) if kinds else SIMPLE[hint]


def refusal(values, source="run.json"):
    """Return the line with which the record in `values` is refused."""
    with pytest.raises(UserError) as refused:
        RunRecord.from_json(values, source)
    assert "\n" not in str(refused.value) and str(refused.value).startswith(f"{source}: ")
    return str(refused.value).removeprefix(f"{source}: ")


@settings(max_examples=50)
@given(record=anything(RunRecord))
def test_a_record_goes_to_json_and_back(record):
    assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_what_is_no_finite_number_is_none_in_json(new_record):
    kept = new_record(loss=math.inf, history=(EpochRow(1, math.nan, 0.1, -math.inf, 1.0),)).to_json()
    assert kept["loss"] is kept["history"][0]["train_loss"] is kept["history"][0]["test_accuracy"] is None
    json.dumps(kept, allow_nan=False)


def test_the_first_version_is_read_with_one_line_that_names_the_file():
    with pytest.warns(RenamedWarning, match="^somewhere/run.json: mlp is now network; optim is now optimizer") as said:
        RunRecord.from_json(FIRST, "somewhere/run.json")
    assert len(said) == 1


def test_the_first_version_is_read_with_all_that_it_says():
    record = RunRecord.from_json(FIRST)
    changed = {"epochs": 2, "batch_size": 32, "network": MLPConfig(hidden=(8,))}
    assert record.recipe == dataclasses.replace(RECIPES["warmstart-mlp"], **changed)
    again = record.to_json()
    assert again.pop("version") == VERSION
    absent = ("loss", "val_accuracy", "val_loss", "by_class", "train_split", "network", "commit", "command")
    for name in (*absent, "weights_sha256", "units_replaced"):
        assert again.pop(name) is None
    assert again.pop("best_epoch") is None
    assert again.pop("resumed") == []
    assert (again.pop("resident"), again.pop("waited_seconds")) == ("device", None)
    rows, facts, versions = again.pop("history"), again.pop("dataset"), again.pop("versions")
    assert [{name: row[name] for name in FIRST["history"][0]} for row in rows] == FIRST["history"]
    assert rows[0]["test_loss"] is rows[0]["images"] is rows[0]["learning_rate"] is None
    assert versions == {**FIRST["versions"], "triton": None, "fastcifar": None}
    new = {"val_size": 0, "side": 32, "resized": 0, "fold": "", "tests_val": False}
    assert {name: facts.pop(name) for name in new} == new
    again |= {"history": FIRST["history"], "dataset": facts, "versions": FIRST["versions"]}
    assert {**again, "recipe": FIRST["recipe"]} == FIRST  # whose recipe lacks the fields of later ones


def test_the_oldest_records_lack_what_was_not_known_yet():
    later = ("compiled", "captured", "not_captured", "first_step_seconds", "phases", "resumed")
    record = RunRecord.from_json({name: value for name, value in FIRST.items() if name not in later})
    assert [getattr(record, name) for name in later] == [False, None, None, None, {}, ()]


@pytest.mark.parametrize("version", [VERSION + 1, 0, "2", 2.0, True, None])
def test_another_version_is_refused(version):
    said = refusal({**FIRST, "version": version}, "runs/a/run.json")
    assert said == f"version is {version!r}; allowed: 1 to {VERSION}, what this fastcifar can read"


REQUIRED = [
    field.name
    for field in dataclasses.fields(RunRecord)
    if field.default is field.default_factory is dataclasses.MISSING
]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_said(name):
    said = refusal({key: value for key, value in FIRST.items() if key != name})
    assert said == f"{name} is missing; allowed: the record of a run, as it was written"


HINTS = {name: hint for name, hint in get_type_hints(RunRecord).items() if name != "version"}


@pytest.mark.parametrize("name", HINTS)
def test_a_wrong_field_is_said(name):
    wrong = 1 if str in (HINTS[name], *get_args(HINTS[name])) else "no"
    assert refusal({**FIRST, name: wrong}).startswith(f"{name} is {wrong!r}; allowed: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": True}, "seed is True; allowed: a whole number"),
        ({"seed": 1.0}, "seed is 1.0; allowed: a whole number"),
        ({"epochs": 10**400}, f"epochs is 1{'0' * 59}...; allowed: a number"),
        ({"history": [*FIRST["history"], {**FIRST["history"][0], "images": 0.5}]}, "history[2].images is 0.5; allowed"),
        ({"history": [{}]}, "history[0].epoch is missing; allowed"),
        ({"dataset": {**FIRST["dataset"], "mean": [1, "2", 3]}}, "dataset.mean[1] is '2'; allowed: a number"),
        ({"phases": {"data": None}}, "phases.data is None; allowed: a number"),
        ({"device": {"type": "cpu"}}, "device.name is missing; allowed"),
        ({"recipe": {"epoch": 1}}, "recipe: unknown field epoch; did you mean 'epochs'?"),
        ({"recipe": {"batch_size": 0}}, "recipe: batch_size is 0; allowed: 1 or more images"),
    ],
)
def test_what_is_wrong_deeper_down_is_said_by_its_place(change, said):
    assert refusal({**FIRST, **change}).startswith(said)


@pytest.mark.parametrize("values", [None, [], "record", 1, [FIRST]])
def test_what_is_no_object_is_refused(values):
    assert refusal(values).endswith("; allowed: an object, the record of a run")


def test_a_note_that_somebody_added_is_passed_over():
    assert RunRecord.from_json({**FIRST, "note": "mine"}) == RunRecord.from_json(FIRST)


def test_losses_and_accuracies_are_by_split_and_epoch(new_record):
    rows = (
        EpochRow(0, None, None, 0.1, 0.0, test_loss=2.3),
        EpochRow(1, 1.5, 0.4, None, 1.0),
        EpochRow(2, 1.0, 0.6, 0.7, 2.0, test_loss=0.9),
    )
    record = new_record(history=rows)
    assert record.losses == {"train": {1: 1.5, 2: 1.0}, "test": {0: 2.3, 2: 0.9}}
    assert record.accuracies == {"train": {1: 0.4, 2: 0.6}, "test": {0: 0.1, 2: 0.7}}
    rows = (*rows[:2], dataclasses.replace(rows[2], val_loss=0.8))
    assert new_record(history=rows).losses["val"] == {2: 0.8}
    assert list(new_record(history=rows).accuracies) == ["train", "test"]


def test_versions_are_those_of_what_is_loaded():
    here = Versions.here()
    assert here.python == ".".join(map(str, sys.version_info[:3]))
    assert (here.torch, here.numpy, here.fastcifar) == (torch.__version__, np.__version__, fastcifar.__version__)


def test_an_absent_package_has_no_version(monkeypatch):
    def absent(name):
        raise record_module.metadata.PackageNotFoundError(name)

    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(record_module.metadata, "version", absent)
    assert Versions.here().triton is None


def test_a_folder_within_a_checkout_is_not_of_its_commit(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/file").touch()
    for words in (["init"], ["add", "."], ["commit", "--no-verify", "-m", "first"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert commit_of(tmp_path) and commit_of(tmp_path / "site-packages") is None


def test_the_module_needs_no_torch():
    code = (
        "import json, sys\n"
        "sys.modules['torch'] = None\n"  # an import of it now raises ImportError
        "from fastcifar.record import RunRecord\n"
        "RunRecord.from_json(json.load(sys.stdin))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(FIRST), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def places(value, path=()):
    """Give the path of every value in nested dictionaries and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


DEEP = functools.reduce(lambda inner, _: [inner], range(500), 1)
HOSTILE = [
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    0.5,
    1e308,
    math.nan,
    math.inf,
    "",
    "\x1b[31m",
    "\ud800",
    [],
    {},
    [{}],
    DEEP,
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda value: repr(value)[:12])
def test_any_value_anywhere_is_read_as_it_will_be_written_or_refused_by_its_place(hostile):
    current = RunRecord.from_json(FIRST).to_json()
    for path in places(current):
        values = copy.deepcopy(current)
        inside = functools.reduce(lambda inside, key: inside[key], path[:-1], values)
        inside[path[-1]] = hostile
        try:
            record = RunRecord.from_json(values)
        except UserError as error:
            named = [str(key) for key in path if isinstance(key, str)]
            assert str(error).isprintable() and len(str(error)) < 2000
            assert any(name in str(error) for name in (named[-1], "deeper than 32", *named[1:2])), (path, str(error))
        else:
            assert RunRecord.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record


def test_no_number_of_a_record_is_nan_and_what_may_be_absent_is():
    assert RunRecord.from_json({**FIRST, "accuracy": math.nan}).accuracy is None
    assert refusal({**FIRST, "train_seconds": math.nan}) == "train_seconds is nan; allowed: a number"
    assert refusal({**FIRST, "seed": 2**63}).startswith("seed is 9223372036854775808; allowed: a whole number")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"seed": 1, "seed": 2}', "seed is given twice"),
        (b'{"init": {"mode": "a", "mode": "b"}}', "mode is given twice"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "Exceeds the limit|unknown"),
        (b"[" * 100_000, "recursion depth|nested"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than 32 levels"),
        (b"[1]", "it is not an object"),
        (b"\xff\xfe", "can't decode byte"),
        (b'{"seed": 1', "delimiter"),
        (b"", "Expecting value"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_damaged_file_is_refused_by_its_path_and_a_line_of_it_left_out(content, said, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=rf"^cannot read the record .*run\.json: .*({said}).*; allowed: a JSON file"
    ) as refused:
        read_json(path, "the record")
    assert str(refused.value).isprintable()
    path.write_bytes(b'{"seed": 1}\n' + content + b'\n{"seed": 3}\n')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        assert read_lines(path) == [{"seed": 1}, {"seed": 3}]


def test_a_record_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    for read in (lambda path: read_json(path, "the record"), read_lines):
        with pytest.raises(UserError, match="it is a pipe or a device; allowed: a file"):
            read(tmp_path / "run.json")
