"""A record goes to JSON and back, older ones are read, and whatever else is refused by the name of its field."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcifar
from fastcifar.errors import RenamedWarning, UserError
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.training import EpochRow, RunRecord
from fastcifar.training import record as record_module
from fastcifar.training.record import VERSION, Versions, commit_of

FIRST = json.loads((Path(__file__).parent / "version-1/run.json").read_text())
"""As it was written before records had a version."""
SIMPLE = {int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False), str: st.text(max_size=9)}
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


@settings(deadline=None, max_examples=50)
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
    for name in ("loss", "val_accuracy", "val_loss", "train_split", "network", "commit", "command"):
        assert again.pop(name) is None
    assert again.pop("resumed") == []
    rows, facts, versions = again.pop("history"), again.pop("dataset"), again.pop("versions")
    assert [{name: row[name] for name in FIRST["history"][0]} for row in rows] == FIRST["history"]
    assert rows[0]["test_loss"] is rows[0]["images"] is rows[0]["learning_rate"] is None
    assert versions == {**FIRST["versions"], "triton": None, "fastcifar": None}
    assert facts.pop("val_size") == 0
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
        "import importlib.util, sys\n"
        "sys.modules['torch'] = None\n"  # an import of it now raises ImportError
        f"spec = importlib.util.spec_from_file_location('record', {record_module.__file__!r})\n"
        "sys.modules['record'] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "import json\n"
        "module.RunRecord.from_json(json.load(sys.stdin))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(FIRST), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
