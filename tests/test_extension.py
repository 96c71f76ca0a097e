"""Somebody's network, optimizers, data set, image trick and experiment, far from this checkout: each is registered by
its own few files (those in `extension`), and an installed fastcifar has its flags, recipes, runs and command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXTENSION = Path(__file__).with_name("extension")
FILES = {"tinynet": 2, "flatsign": 2, "lion": 2, "stripes": 1, "grey": 2, "lengths": 1}
"""Each plug-in and the files that it consists of."""
PLUGINS = [word for name in FILES for word in ("--plugin", name)]
SMALL = ("--dataset", "stripes", "--device", "cpu")
RECIPE = """\
epochs = 4
batch_size = 32
label_smoothing = 0.0
dtype = "float32"
augment = {crop = 2}
network = {kind = "tiny", width = 6}
optimizer = {kind = "sign"}
transforms = {grey = {share = 0.5}}
ema = {decay = 0.0}
"""
COMMANDS = """
import contextlib, io, json, runpy, sys, traceback
import fastcifar
from fastcifar.cli import main

print(json.dumps(fastcifar.__file__), flush=True)
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()) as refused:
        try:
            words = json.loads(line)
            status = runpy.run_path(words[0], run_name="__main__") and 0 if words[0].endswith(".py") else main(words)
        except Exception:
            status = traceback.print_exc()
    print(json.dumps([status, said.getvalue(), refused.getvalue()]), flush=True)
"""


class CommandLine:
    """One process that runs command after command, and programs: Python and torch start once."""

    def __init__(self, folder, environment):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", COMMANDS], cwd=folder, env=environment, **pipes)
        self.package = json.loads(self._process.stdout.readline())

    def __call__(self, *words):
        """Return what the command printed."""
        status, said, refused = self._run(words)
        assert status == 0, refused
        return said

    def refusal(self, *words):
        """Return the one line that it refuses."""
        status, said, refused = self._run(words)
        assert (status, said, refused.count("\n")) == (2, "", 1), said + refused
        return refused

    def _run(self, words):
        self._process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        assert self._process.wait() == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where somebody works: the plug-ins and a recipe."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(EXTENSION, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "small.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def environment(installed):
    return {**os.environ, "PYTHONPATH": str(installed)}


@pytest.fixture(scope="module")
def fastcifar(folder, environment):
    """The command line."""
    commands = CommandLine(folder, environment)
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def without(folder, environment):
    """The command line of a process that never sees a plug-in."""
    commands = CommandLine(folder, environment)
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def run(folder, environment):
    """A run that all plug-ins at once made, by a command of its own."""
    words = ["train", *PLUGINS, *SMALL, "--recipe", "small.toml", "--network.width", "4", "--out", "run", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "fastcifar", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_plug_in_is_a_few_files():
    parts = [path.relative_to(EXTENSION).parts[0].removesuffix(".py") for path in EXTENSION.rglob("*.py")]
    assert {part: parts.count(part) for part in parts} == FILES


def test_all_plug_ins_at_once_train_from_the_command_line(run):
    saved = record(run)
    assert saved["dataset"]["name"] == "stripes" and saved["dataset"]["classes"] == ["lying", "standing", "none"]
    recipe = saved["recipe"]
    assert recipe["network"] == {"kind": "tiny", "width": 4, "squared": True}
    assert recipe["optimizer"] == {"kind": "sign", "lr": 0.003, "shrink": 0.01}
    assert recipe["transforms"] == {"grey": {"kind": "grey", "share": 0.5, "most": 1.0}}
    first, *_, last = saved["history"]
    assert len(saved["history"]) == 4 and last["train_loss"] < first["train_loss"]


def test_a_saved_run_is_loaded_and_evaluated_again(run, fastcifar, without, installed):
    assert Path(fastcifar.package).is_relative_to(installed)
    said = json.loads(fastcifar("eval", run, *PLUGINS, "--json"))
    assert (said["dataset"], said["images"]) == ("stripes", 64)
    assert said["accuracy"] == said["stored_accuracy"] == record(run)["tta_accuracy"]
    assert "network.kind is 'tiny'; allowed: " in (refusal := without.refusal("eval", run)) and "--plugin" in refusal


def test_fields_are_flags_with_their_docstrings_in_the_help(fastcifar):
    kinds = ("--network", "tiny", "--optimizer", "sign")
    said = " ".join(fastcifar("train", *PLUGINS, *kinds, "--help-all").split())
    for words in (
        "--network.width INT Channels of the convolution. (default: 8)",
        "--optimizer.shrink FLOAT Share of a weight that a step at the peak removes. (default: 0.01)",
        "--transforms.grey.share FLOAT Chance of an image to lose some; 0: none. (default: 0.0)",
        "stripes: Stripes that lie or stand or are not there.",
        "tiny: One convolution and a classifier",
        "lion: Lion (Chen 2023)",
    ):
        assert words in said
    assert "--optimizer.betas" not in said
    said = " ".join(fastcifar("train", *PLUGINS, "--optimizer", "lion", "--help-all").split())
    assert "--optimizer.betas FLOAT FLOAT" in said and "--optimizer.shrink" not in said


def test_a_recipe_is_written_with_their_fields_and_read_back(fastcifar, folder):
    shown = fastcifar("recipes", "show", "small.toml", *PLUGINS)
    for words in (
        "\n[network]\n",
        '\nkind = "tiny"\n',
        "# Channels of the convolution.\nwidth = 6\n",
        "shrink = 0.01",
        "[transforms.grey]\n",
        "share = 0.5\n",
    ):
        assert words in shown
    (folder / "whole.toml").write_text(shown)
    assert fastcifar("recipes", "show", "whole.toml", *PLUGINS) == shown


def test_an_optimizer_of_torchs_form_takes_its_fields_as_arguments(fastcifar, folder):
    flags = ("--optimizer", "lion", "--optimizer.betas", "0.8", "0.9")
    fastcifar("train", *PLUGINS, *SMALL, "--recipe", "small.toml", *flags, "--out", "lion-run", "--quiet")
    saved = record(folder / "lion-run")
    assert saved["recipe"]["optimizer"] == {"kind": "lion", "lr": 0.002, "betas": [0.8, 0.9]}
    losses = [row["train_loss"] for row in saved["history"]]
    assert losses[-1] < losses[0]
    fastcifar("train", *PLUGINS, *SMALL, "--recipe", "small.toml", "--optimizer", "lion", "--out", "other", "--quiet")
    assert [row["train_loss"] for row in record(folder / "other")["history"]] != losses


def test_one_plug_in_alone_trains(fastcifar, folder):
    flags = ("--recipe", "davidnet", "--network.widths", "4", "4", "4", "4", "--transforms.grey.share", "0.5")
    small = (*SMALL, "--epochs", "0.5", "--batch-size", "32", "--out", "grey-run", "--quiet")
    fastcifar("train", "--plugin", "grey", "--plugin", "stripes", *flags, *small)
    assert record(folder / "grey-run")["recipe"]["transforms"]["grey"]["share"] == 0.5


def test_what_is_declared_a_trick_is_an_arm_of_an_ablation_and_changes_the_losses(fastcifar):
    words = ("ablate", *PLUGINS, *SMALL, "--recipe", "small.toml", "--only", "squared", "shrink", "grey", "--json")
    arms = json.loads(fastcifar(*words, "--runs", "1", "--holdout", "0", "--out", "ablation"))["rows"]
    assert {row["arm"] for row in arms} == {"full", "no-squared", "no-shrink", "no-grey"}
    verified = json.loads(fastcifar("verify", *words[1:]))["rows"]
    assert {row["trick"]: row["off"] for row in verified} == {
        "squared": {"network.squared": False},
        "shrink": {"optimizer.shrink": 0.0},
        "grey": {"transforms.grey.share": 0.0},
    }
    assert all(row["seen"] and row["change"] > 1e-5 for row in verified)


def test_an_experiment_of_one_file_has_its_command_and_goes_on_where_it_was(fastcifar, without, folder):
    lines = (EXTENSION / "lengths.py").read_text().splitlines()
    assert len(lines) < 60
    said = " ".join(fastcifar("lengths", *PLUGINS, "--help").split())
    assert "Train a recipe for several numbers of epochs." in said
    assert "--epochs-each FLOAT ... How many epochs, an arm each. (default: 1.0 2.0)" in said
    assert "--optimizer.lr" in said and "--runs N" in said
    assert "train a recipe for several numbers of epochs" in fastcifar("--help", *PLUGINS)
    words = (
        "lengths",
        *PLUGINS,
        *SMALL,
        "--recipe",
        "small.toml",
        "--epochs-each",
        "0.5",
        "1",
        "--out",
        "lengths-runs",
    )
    said = fastcifar(*words, "--runs", "1")
    assert "[2/2] 1-epochs/seed-0" in said and "accuracy" in said
    said = fastcifar(*words, "--runs", "2")
    runs = [line.split(";")[0] for line in said.splitlines() if "/seed-" in line]
    assert [line.endswith("kept") for line in runs] == [True, True, False, False]
    results = json.loads((folder / "lengths-runs/results.json").read_text())
    assert results["arms"]["1-epochs"]["accuracy"]["n"] == 2 and results["epochs_each"] == [0.5, 1]
    assert "| 0.5-epochs | " in (folder / "lengths-runs/table.md").read_text()
    assert (folder / "lengths-runs/lengths.svg").is_file() or "figures need matplotlib" in said
    assert "unknown command 'lengths'" in without.refusal("lengths")


def test_a_name_that_is_taken_is_refused(fastcifar, folder):
    for name, what, decorated in (
        ("tiny", "network", "@frozen\nclass Config(fastcifar.NetworkConfig): pass"),
        ("sgd", "optimizer", "@frozen\nclass Config(fastcifar.OptimizerConfig): pass"),
        ("stripes", "dataset", "def load(): pass"),
        ("grey", "transform", "@frozen\nclass Config(fastcifar.TransformConfig): pass"),
    ):
        maker = "" if what == "dataset" else ", 'another.module:Thing'"
        module = folder / f"another_{what}.py"
        frozen = "import dataclasses, fastcifar\nfrozen = dataclasses.dataclass(frozen=True)\n"
        module.write_text(f"{frozen}@fastcifar.{what}({name!r}{maker})\n{decorated}\n")
        refusal = fastcifar.refusal("train", *PLUGINS, "--plugin", module.stem, "--help")
        assert f"the plug-in {module.stem}: there is a" in refusal and f" {name!r} already; allowed: " in refusal


def test_kinds_that_no_plug_in_registered_are_refused_with_a_hint_at_plugins(without):
    refusal = without.refusal("recipes", "show", "small.toml")
    assert "small.toml: " in refusal and "network.kind is 'tiny'; allowed: " in refusal and "(--plugin)" in refusal


def test_a_recipe_file_never_imports_code(without, folder):
    (folder / "danger.py").write_text("open('imported', 'w').close()\n")
    for text in (
        'network = "danger"',
        'network = "danger:Network"',
        'network = {kind = "danger:Network"}',
        'network = {kind = "mlp", builder = "danger:Network"}',
        'optimizer = {kind = "danger"}',
        "transforms = {danger = {share = 1.0}}",
        'plugin = ["danger"]',
    ):
        (folder / "danger.toml").write_text(text)
        assert "danger.toml: " in without.refusal("train", "--recipe", "danger.toml", "--out", "never")
    assert not (folder / "imported").exists() and not (folder / "never").exists()
    (folder / "never").mkdir()
    without("recipes", "--plugin", "danger")
    assert (folder / "imported").exists()  # as it would have
