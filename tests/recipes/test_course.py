"""The course's recipes: its settings, its example files, HDF5 images, and images brought to AlexNet's side."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import fastcifar
from fastcifar.cli import main
from fastcifar.cli.arguments import parse_with_recipe
from fastcifar.cli.train import Options
from fastcifar.optim.schedule import learning_rates
from fastcifar.recipes import RECIPES, change, get_recipe, network_of, read_toml, to_toml
from fastcifar.recipes.networks.alexnet import AlexNetConfig
from fastcifar.training import train

COURSE = ("lenet", "alexnet", "resnet18", "resnet18-mediumimagenet")
EXAMPLES = Path(__file__).parents[2] / "examples" / "course"
TINY = {"network.widths": (2, 2, 3, 3, 2), "network.hidden": (4, 4), "epochs": 0.02, "batch_size": 16}


@pytest.mark.parametrize("name", COURSE)
def test_an_example_file_is_the_named_recipe(name):
    text = (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")
    assert text == to_toml(RECIPES[name]), f"write it anew: fastcifar recipes show {name} > examples/course/{name}.toml"
    assert read_toml(EXAMPLES / f"{name}.toml") == RECIPES[name]


def test_every_example_file_is_there():
    assert sorted(path.stem for path in EXAMPLES.glob("*.toml")) == sorted(COURSE)


@pytest.mark.parametrize("name", COURSE)
def test_the_training_is_the_courses(name):
    recipe = get_recipe(name)
    optimizer = recipe.optimizer
    assert (optimizer.kind, optimizer.lr, optimizer.betas) == ("AdamW", 3e-4, (0.9, 0.999))
    assert (recipe.epochs, recipe.batch_size, recipe.label_smoothing) == (50, 256, 0.0)
    assert (recipe.augment.flip, recipe.augment.crop, recipe.evaluate.tta, recipe.ema.decay) == ("random", 0, "none", 0)
    jitter = recipe.transforms.color_jitter
    assert jitter.brightness > 0 and jitter.contrast > 0 and jitter.saturation > 0 and jitter.hue == 0
    rates = learning_rates(recipe, 1000)
    expected = 1.5e-4 * (1 + np.cos(np.pi * np.arange(1000) / 1000))
    assert rates == pytest.approx(expected, abs=1e-12)


def test_warm_up_and_floor_are_options():
    changes = {"schedule.warmup": 0.1, "schedule.options": ("eta_min=1e-5",)}
    rates = learning_rates(change(get_recipe("resnet18"), changes), 100)
    assert rates[:10] == pytest.approx(3e-4 * np.arange(1, 11) / 11) and rates[10] == max(rates) == 3e-4
    assert 1e-5 <= rates[-1] < 1.2e-5


def test_the_strong_recipe_is_not_the_first_with_its_network():
    assert network_of(RECIPES["davidnet"], "resnet18") == RECIPES["warmstart-resnet18"].network
    assert "aims at 95%" in fastcifar.recipes.SUMMARIES["resnet18-95"]
    assert RECIPES["resnet18-95"].epochs >= 30


@pytest.mark.parametrize(
    ("words", "resize"),
    [
        ("--recipe alexnet", 70),
        ("--recipe alexnet --resize 96", 96),
        ("--network alexnet", 70),
        ("--recipe resnet18", None),
        ("--recipe alexnet --dataset mine.npz --data-dir elsewhere", None),  # whose images may be large
    ],
)
def test_the_command_line_brings_small_images_to_alexnets_side(words, resize):
    options = parse_with_recipe(words.split(), Options, "fastcifar train")
    assert options.resized_for(options.settings).resize == resize


def test_recipes_that_disagree_are_left_to_the_flag():
    options = parse_with_recipe([], Options, "fastcifar train")
    assert options.resized_for(RECIPES["davidnet"], RECIPES["alexnet"]).resize == 70  # which davidnet takes too
    assert main(["train", "--recipe", "alexnet", "--resize", "32", "--dataset", "synthetic"]) == 2


def test_a_data_set_by_name_is_brought_to_alexnets_side():
    run = train("alexnet", "synthetic", device="cpu", holdout=2000, eval_every=0, **TINY)
    assert run.record.dataset.side == 70 and run.record.dataset.resized == 70


def test_mediumimagenets_form_trains_from_an_hdf5_file(tmp_path, monkeypatch, capsys):
    h5py = pytest.importorskip("h5py")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "medium-imagenet-96.hdf5", "w") as file:
        for part, count in (("train", 48), ("val", 12), ("test", 8)):
            file[f"images-{part}"] = random.integers(256, size=(count, 3, 96, 96), dtype=np.uint8)
            if part != "test":  # as the course's
                file[f"labels-{part}"] = np.arange(count) * 199 // (count - 1)
    words = ["train", "--recipe", "resnet18-mediumimagenet", "--dataset", str(tmp_path / "medium-imagenet-96.hdf5")]
    words += ["--network.width", "2", "--epochs", "1", "--batch-size", "16", "--out", str(tmp_path / "run")]
    assert main([*words, "--device", "cpu"]) == 0
    _, model, record = fastcifar.load_run(tmp_path / "run")
    assert model.fc.out_features == len(record.dataset.classes) == 200 and record.dataset.side == 96
    assert model.conv1.kernel_size == (7, 7)
    assert "resnet18-mediumimagenet" in capsys.readouterr().out


def test_quick_narrows_alexnet():
    recipe, _ = fastcifar.recipes.quick(RECIPES["alexnet"])
    assert recipe.network == dataclasses.replace(AlexNetConfig(), widths=(16, 48, 96, 64, 64), hidden=(1024, 1024))
