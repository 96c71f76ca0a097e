"""Registries of values by name, and the modules that add to them."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from fastcifar.catalogue import DATASETS, DEFAULT_DATASET, DatasetEntry, dataset, dataset_for, find, is_path
from fastcifar.errors import UserError
from fastcifar.recipes import NETWORKS, OPTIMIZERS, RECIPES, NetworkConfig, network, setting
from fastcifar.registry import Registry, import_plugin, resolve


def test_built_in_values_are_there_at_the_first_look_up():
    code = (
        "from fastcifar.recipes.networks import NETWORKS\n"
        "from fastcifar.recipes.optimizers import OPTIMIZERS\n"
        "from fastcifar.recipes.named import RECIPES\n"
        "print(*sorted(NETWORKS), *sorted(OPTIMIZERS), *sorted(RECIPES))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown == [*sorted(NETWORKS), *sorted(OPTIMIZERS), *sorted(RECIPES)]
    assert {"davidnet", "mlp", "resnet18", "speedrun", "sgd", "muon", "lars", "AdamW", "speedrun94"} <= set(shown)


def test_an_unknown_name_is_answered_with_the_known_ones():
    shelf = Registry("shelf")
    shelf.add("oak", 1)
    shelf.add("pine", 2)
    assert dict(shelf) == {"oak": 1, "pine": 2} and "ash" not in shelf and ["oak"] not in shelf
    with pytest.raises(UserError) as refusal:
        shelf["oakk"]
    assert str(refusal.value) == "unknown shelf 'oakk'; did you mean 'oak'?; allowed: oak, pine"


def test_a_name_is_taken_once_and_by_the_same_thing_again():
    shelf = Registry("shelf")
    shelf.add("oak", UserError)
    shelf.add("oak", UserError)  # as when a module is loaded again
    with pytest.raises(UserError, match="there is a shelf 'oak' already; allowed: another name than oak"):
        shelf.add("oak", ValueError)
    with pytest.raises(UserError, match="the shelf's name is '3 oaks'; allowed: a letter, then"):
        shelf.add("3 oaks", 1)
    with pytest.raises(UserError, match="there is a network 'davidnet' already"):
        NETWORKS.add("davidnet", UserError)


def test_every_recipe_is_made_for_one_data_set():
    for name, entry in DATASETS.items():
        for recipe in entry.recipes:
            assert recipe in RECIPES and dataset_for(recipe) == dataset_for("mine.toml", recipe) == name
    assert dataset_for("davidnet") == dataset_for("unknown") == dataset_for() == DEFAULT_DATASET


def test_a_data_set_goes_by_its_loader_and_the_first_line_of_its_docstring():
    @dataset("three-pens")
    def load_pens():
        """Photographs of pens.

        Three of them."""

    try:
        entry = DATASETS["three-pens"]
        assert (entry.summary, entry.load) == ("Photographs of pens.", load_pens)
        assert next(iter(DATASETS)) == DEFAULT_DATASET
        with pytest.raises(UserError, match="there is a data set 'three-pens' already"):
            dataset("three-pens")(lambda: None)
    finally:
        del DATASETS._values["three-pens"]


def test_a_data_set_is_a_name_with_or_without_a_variant_or_a_path(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS._values, "pens", DatasetEntry("pens", "pens:load", variants={"blue": 3, "black": 2}))
        patch.chdir(tmp_path)
        (tmp_path / "photographs").mkdir()
        assert find("pens") == (DATASETS["pens"], "") and find("pens:blue") == (DATASETS["pens"], "blue")
        for path in ("photographs", "./x", "images.npz", "/a/b.H5"):
            assert find(path)[0].summary == "images of your own" and is_path(path)
        for wrong, said in (
            ("pens:bleu", "did you mean 'blue'.; allowed: pens, pens:blue, pens:black"),
            ("pens:", "allowed: pens, pens:blue, pens:black"),
            ("pans", "did you mean 'pens'.; allowed: cifar10, .*, or a path"),
            ("cifar10:coarse", "unknown data set 'cifar10:coarse'; allowed: cifar10$"),
        ):
            with pytest.raises(UserError, match=said):
                find(wrong)


def test_a_target_is_found_by_its_module_and_name():
    assert resolve("fastcifar.errors:UserError") is UserError
    assert resolve(UserError) is UserError
    for target in ("fastcifar.errors:Nothing", "fastcifar.nowhere:UserError", ":UserError", "nowhere"):
        with pytest.raises(UserError, match=f"there is no '{target}': .*; allowed: 'package.module:name'"):
            resolve(target)


def test_a_plugin_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_plugin.py").write_text("value = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    import_plugin("my_plugin")
    assert sys.modules.pop("my_plugin").value == 3


TAKEN = """
import dataclasses, fastcifar
@fastcifar.network('davidnet', 'a:b')
@dataclasses.dataclass(frozen=True)
class Config(fastcifar.NetworkConfig): ...
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"cannot import the plug-in broken_plugin: ModuleNotFoundError: .* 'broken_plugin'; allowed"),
        ("import no_such_thing", r"ModuleNotFoundError: .* 'no_such_thing' \(.*broken_plugin\.py, line 1\)"),
        ("import sys\nsys.exit('no')", r"SystemExit: no \(.*broken_plugin\.py, line 2\)"),
        ("x = (", r"SyntaxError: .* \(broken_plugin\.py, line 1\); allowed"),
        ("x = 1\n1 / 0", r"ZeroDivisionError: division by zero \(.*broken_plugin\.py, line 2\)"),
        (TAKEN, "the plug-in broken_plugin: there is a network 'davidnet' already; allowed: another name"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_refused_in_one_line(tmp_path, monkeypatch, text, said):
    if text is not None:
        (tmp_path / "broken_plugin.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=said) as refusal:
        import_plugin("broken_plugin")
    assert "\n" not in str(refusal.value)


def test_threads_that_look_up_at_once_all_see_the_built_in_values():
    code = (
        "import sys, threading\n"
        "sys.setswitchinterval(1e-6)\n"
        "from fastcifar.recipes.named import RECIPES\n"
        "found = []\n"
        "threads = [threading.Thread(target=lambda: found.append('speedrun94' in RECIPES)) for _ in range(8)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "assert found == [True] * 8, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass(frozen=True)
class Plain:
    width: int = 8


class Bare(NetworkConfig):
    width: int = setting(8)


@dataclass(frozen=True)
class Mixed(NetworkConfig):
    width: int | None = None


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Plain, "odd is registered with <class '.*Plain'>; allowed: a dataclass.* of a NetworkConfig"),
        (Bare, "odd is registered with <class '.*Bare'>; allowed: a dataclass.* of a NetworkConfig"),
        (Mixed, "the field width of odd is of type int | None; allowed: a default, and a type of int"),
    ],
)
def test_a_bad_configuration_is_not_registered(cls, said):
    with pytest.raises(UserError, match=said):
        network("odd", "a:b")(cls)
    assert "odd" not in NETWORKS


@dataclass(frozen=True, kw_only=True)
class Required(NetworkConfig):
    width: int


def test_a_field_without_a_default_is_not_registered():
    with pytest.raises(UserError, match="the field width of odd has no default; allowed: a default"):
        network("odd", "a:b")(Required)
