"""A machine with torch, numpy and pytest alone, which may have no network: no tyro, nothing that a download
needs, perhaps no rich."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNNERS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "bench").rglob("*.py")
    if path.name != "conftest.py" and not path.match("foreign/pytorch*.py")  # which need what they adapt
)
TRAINING = """
import dataclasses, importlib, sys, tempfile
import fastcifar
from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes.networks.mlp import MLPConfig

recipe = dataclasses.replace(fastcifar.get_recipe("warmstart-mlp"), epochs=1, batch_size=32, network=MLPConfig((8,)))
run = fastcifar.train(recipe, make_synthetic(64, 50), device="cpu")
with tempfile.TemporaryDirectory() as folder:
    _, model, record = fastcifar.load_run(run.save(folder + "/run"))
assert record.tta_accuracy == run.tta_accuracy
"""


def run_without(absent, code):
    """Run `code` in a process where an import of any of `absent` raises ImportError."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
    done = subprocess.run([sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("absent", [("tyro", "platformdirs", "certifi"), ("rich", "tyro", "platformdirs")])
def test_training_saving_and_loading_work(absent):
    run_without(absent, TRAINING)


def test_every_program_of_bench_can_be_imported():
    code = f"import importlib\nfor name in {RUNNERS!r}:\n    if not name.endswith('__main__'):\n"
    run_without(("tyro", "platformdirs", "rich"), code + "        importlib.import_module(name)\n")


def test_a_download_says_what_is_missing():
    code = """
import tempfile
from fastcifar.data.cifar import load_cifar10
from fastcifar.errors import UserError

with tempfile.TemporaryDirectory() as folder:
    try:
        os.environ["HOME"] = folder
        load_cifar10()
    except UserError as error:
        assert "platformdirs is not installed" in str(error), error
    else:
        raise AssertionError("it was downloaded without platformdirs")
"""
    run_without(("tyro", "platformdirs"), "import os\nos.environ.pop('FASTCIFAR_DATA', None)\n" + code)
