import dataclasses
import json
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import RenamedWarning, UserError
from fastcifar.experiments import Job
from fastcifar.experiments.result import Diverged
from fastcifar.experiments.store import SETTINGS, Store, describe_data
from fastcifar.output import PARTIAL
from fastcifar.recipes import RECIPES, Recipe
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config

JOB = Job("arm", 0, Recipe())


@pytest.fixture
def record(new_record):
    """Makes the record of a run of `JOB` with this loss."""
    return lambda loss: new_record(recipe=JOB.recipe, tta_loss=loss)


TEN = {"recipe": dataclasses.asdict(Recipe(epochs=10.0)), "runs": 5}


def test_what_is_put_is_got_again_by_another_store(tmp_path, record):
    Store(tmp_path / "new", TEN).put(JOB, record(0.5), None, weights=False)
    again = Store(tmp_path / "new", TEN)
    assert again.get(JOB) == record(0.5)
    assert again.get(dataclasses.replace(JOB, seed=1)) is None
    assert again.path("arm/seed-0") == tmp_path / "new/arm/seed-0.json"


def test_a_later_record_replaces_an_earlier_one(tmp_path, record):
    store = Store(tmp_path, TEN)
    store.put(JOB, record(1.0), None, weights=False)
    store.put(JOB, record(2.0), None, weights=False)
    assert store.get(JOB).tta_loss == 2
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["seed-0.json", SETTINGS]


def test_a_run_that_diverged_is_kept_for_its_recipe_alone(tmp_path):
    """Some settings may change while a folder goes on: with another recipe it may not diverge."""
    Store(tmp_path, TEN).put(JOB, Diverged("too high"), None, weights=False)
    other = dataclasses.replace(JOB, recipe=Recipe(epochs=3.0))
    store = Store(tmp_path, TEN)
    assert store.get(JOB) == Diverged("too high") and store.has(JOB)
    later = Store(tmp_path, TEN)
    assert later.get(other) is None and not later.has(other)
    store.path(JOB.key).write_text('{"diverged": "too high"}')  # of an older version, which did not say the recipe
    assert store.get(JOB) is None and not store.has(JOB)


def test_what_is_kept_is_there_until_its_file_is_not(tmp_path, record):
    store = Store(tmp_path, TEN)
    assert not store.has(JOB)
    store.put(JOB, record(1.0), None, weights=False)
    assert store.has(JOB) and store.has(JOB)
    found = dataclasses.replace(JOB, diagnose=("units",))
    assert not store.has(found)
    store.path(JOB.key).unlink()
    assert not store.has(JOB)


@pytest.mark.parametrize("normalization", [{"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}])
def test_images_that_are_normalized_in_another_way_are_other_data(tmp_path, normalization):
    dataset = make_synthetic(8, 8)
    Store(tmp_path, describe_data(dataset, "cpu"))
    (key,) = normalization
    with pytest.raises(UserError, match=f"was begun with other settings: {key}"):
        Store(tmp_path, describe_data(dataclasses.replace(dataset, **normalization), "cpu"))
    there = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps({name: there[name] for name in there if name not in ("mean", "std")}))
    Store(tmp_path, describe_data(dataset, "cpu"))  # older versions did not say them


def test_a_job_is_claimed_by_one_process_at_a_time(tmp_path):
    store, other = Store(tmp_path, TEN), Store(tmp_path, TEN)
    with store.claim(JOB) as first, other.claim(JOB) as second:
        assert (first, second) == (True, False)
    with other.claim(JOB) as again:
        assert again
    assert [path.name for path in tmp_path.rglob("*.*")] == [SETTINGS]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({**TEN, "runs": 6}, "runs is 5 there and 6 now"),
        ({**TEN, "recipe": TEN["recipe"] | {"epochs": 12}}, "recipe.epochs is 10.0 there and 12 now"),
        ({**TEN, "holdout": None}, "holdout is absent there and null now"),
        ({"recipe": TEN["recipe"]}, "runs is 5 there and absent now"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_changed(tmp_path, other, said):
    Store(tmp_path, TEN)
    before = (tmp_path / SETTINGS).read_text()
    with pytest.raises(UserError, match=said):
        Store(tmp_path, other)
    assert (tmp_path / SETTINGS).read_text() == before


def test_settings_from_before_a_field_of_recipes_existed_are_those_with_its_default(tmp_path):
    early = dataclasses.asdict(Recipe(epochs=10.0))
    del early["compile"], early["augment"]["early"], early["network"]["ghost_batch"]
    (tmp_path / SETTINGS).write_text(json.dumps({"recipe": early, "runs": 5}))
    Store(tmp_path, TEN)
    (tmp_path / SETTINGS).write_text(json.dumps({"recipe": early | {"epochs": 9}, "runs": 5}))
    with pytest.raises(UserError, match=r"recipe\.epochs is 9.0 there and 10.0 now"):
        Store(tmp_path, TEN)


def test_of_those_that_begin_a_folder_at_once_with_different_settings_one_does(tmp_path):
    for round_ in range(20):
        at_once = threading.Barrier(4)

        def begin(number, folder=tmp_path / str(round_), at_once=at_once):
            at_once.wait()
            try:
                Store(folder, {"kind": "test", "runs": number})
            except UserError as error:
                assert "was begun with other settings: runs" in str(error)
                return None
            return number

        with ThreadPoolExecutor(4) as threads:
            (begun,) = [number for number in threads.map(begin, range(4)) if number is not None]
        assert json.loads((tmp_path / str(round_) / SETTINGS).read_text())["runs"] == begun
        assert os.listdir(tmp_path / str(round_)) == [SETTINGS]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files but no settings\.json"):
        Store(tmp_path, TEN)
    with pytest.raises(UserError, match="cannot be made"):
        Store(tmp_path / "notes.txt", TEN)


@pytest.mark.parametrize("key", ["", "settings", "../a", "/a", "a//b", "a/", ".hidden", "a b", "a/../b"])
def test_a_key_that_is_no_file_of_the_folder_is_refused(tmp_path, key):
    with pytest.raises(UserError, match="the key of a run"):
        Store(tmp_path, TEN).path(key)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_record_is_said(tmp_path, content):
    store = Store(tmp_path, TEN)
    store.path(JOB.key).parent.mkdir()
    store.path(JOB.key).write_text(content)
    with pytest.raises(UserError, match=r"cannot read .*arm/seed-0\.json"):
        store.get(JOB)


def test_a_write_that_fails_leaves_the_record_before_it_and_no_trace(tmp_path, monkeypatch, record):
    store = Store(tmp_path, TEN)
    store.put(JOB, record(1.0), None, weights=False)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        store.put(JOB, record(2.0), None, weights=False)
    assert store.get(JOB).tta_loss == 1
    assert len(list(tmp_path.rglob("*.*"))) == 2


def test_what_a_process_killed_while_writing_leaves_is_no_hindrance(tmp_path, monkeypatch, record):
    def kill(*_):
        raise SystemExit

    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", kill)
        killed.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            Store(tmp_path, TEN)
    assert {entry.name.startswith(PARTIAL) for entry in tmp_path.iterdir()} == {True}
    Store(tmp_path, TEN).put(JOB, record(1.0), None, weights=False)
    assert Store(tmp_path, TEN).get(JOB).tta_loss == 1


def test_numbers_that_json_has_not_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Store(tmp_path, {"share": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_an_older_version_began_goes_on(tmp_path):
    old = json.loads((Path(__file__).parents[1] / "recipes/old_form/warmstart-narrow.json").read_text())
    (tmp_path / SETTINGS).write_text(json.dumps({"recipe": old, "b": old, "runs": 5}))
    recipe = dataclasses.asdict(RECIPES["warmstart-narrow"])
    with pytest.warns(RenamedWarning) as said:
        Store(tmp_path, {"recipe": recipe, "b": recipe, "runs": 5})
    messages = [str(warning.message) for warning in said]
    for name, message in zip(("recipe", "b"), messages, strict=True):
        assert message.startswith(f"{tmp_path / SETTINGS}: {name}: model is now network; ")
    other = {**recipe, "epochs": 3}
    with pytest.warns(RenamedWarning), pytest.raises(UserError, match=r"recipe\.epochs is 18\.0 there and 3 now"):
        Store(tmp_path, {"recipe": other, "b": recipe, "runs": 5})


@pytest.mark.parametrize(("width", "is_old"), [(16, True), (64, False)])
def test_kinds_of_networks_in_an_older_folder_stand_for_what_they_were_then(tmp_path, width, is_old):
    """Formerly the recipe had a section for each; then the named recipes had them."""
    recipe = dataclasses.asdict(RECIPES["warmstart-narrow"])
    old = json.loads((Path(__file__).parents[1] / "recipes/old_form/warmstart-narrow.json").read_text())
    mlp = dataclasses.asdict(MLPConfig())
    (tmp_path / SETTINGS).write_text(json.dumps({"recipe": old if is_old else recipe, "networks": ["resnet18", mlp]}))

    def go_on(width):
        resnet = dataclasses.asdict(ResNet18Config(width=width, stem="imagenet"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RenamedWarning)
            Store(tmp_path, {"recipe": recipe, "networks": {"resnet18": resnet, "mlp": mlp}})

    go_on(width)
    with pytest.raises(UserError, match=rf"networks\.resnet18\.width is {width} there and 32 now"):
        go_on(32)
