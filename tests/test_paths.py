"""Paths that users give: "~" stands for the home folder at every door, and an unknown one is one line."""

import os
from pathlib import Path

import pytest

import fastcifar
from fastcifar.data import load_dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.output import check_out, user_path
from fastcifar.recipes import get_recipe, read_toml
from fastcifar.start import Dash, Fire, ShrinkPerturb, WarmStart
from fastcifar.training import Run, load_run
from tests.small import MLP

DOORS = {
    "user_path": lambda path: user_path(path, "the path"),
    "check_out": check_out,
    "get_recipe": lambda path: get_recipe(f"{path}.toml"),
    "read_toml": read_toml,
    "load_dataset": lambda path: load_dataset("cifar10", path),
    "train": lambda path: fastcifar.train("warmstart-mlp", "cifar10", data_dir=path),
    "WarmStart": WarmStart,
    "ShrinkPerturb": ShrinkPerturb,
    "Fire": Fire,
    "Dash": Dash,
    "load_run": load_run,
    "read_runs": fastcifar.read_runs,
    "Run.save": lambda path: Run.save(object.__new__(Run), path),
    "Result.write": lambda path: fastcifar.Result.write(object.__new__(fastcifar.Result), path),
    "Result.draw": lambda path: fastcifar.Result.draw(object.__new__(fastcifar.Result), path),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("door", DOORS)
def test_an_unknown_home_is_one_line(door, kind, home):
    with pytest.raises(UserError, match=r"~nosuch.*; allowed: ") as raised:
        DOORS[door](kind("~nosuch/x"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["", "a\0b", 3, None, b"x", ["x"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(UserError, match=r"^the place is .*; allowed: a path"):
        user_path(path, "the place")


def test_the_home_folder_is_found_at_every_door(home):
    assert user_path("~/x", "the path") == home / "x" == user_path(Path("~/x"), "the path")
    assert user_path("x", "the path") == Path("x")
    (home / "mine.toml").write_text("epochs = 3")
    assert get_recipe("~/mine.toml") == read_toml(Path("~/mine.toml"))
    assert fastcifar.get_recipe("~/mine.toml").epochs == 3
    (home / "run").mkdir()
    (home / "run" / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    assert len(WarmStart("~/run").describe()["sha256"]) == 64
    with pytest.raises(UserError, match=f"{home}/run already holds files"):
        check_out("~/run")
    with pytest.raises(UserError, match=f"{home}/run holds no run: run.json is missing"):
        load_run("~/run")
    with pytest.raises(UserError, match=f"data_dir {home}/run holds no CIFAR-10"):
        load_dataset("cifar10", "~/run")


def test_the_environments_path_is_one_too(home, monkeypatch):
    monkeypatch.setenv("FASTCIFAR_DATA", "~nosuch/x")
    with pytest.raises(UserError, match=r"^\$FASTCIFAR_DATA is ~nosuch/x"):
        load_dataset("cifar10")


def test_a_run_is_saved_under_the_home_folder(home, tmp_path):
    run = fastcifar.train(MLP, make_synthetic(32, 10), epochs=1)
    assert run.save("~/runs/one") == home / "runs" / "one"
    assert load_run("~/runs/one")[2] == run.record
    assert not os.path.exists("~")
