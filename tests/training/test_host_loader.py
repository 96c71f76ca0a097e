"""A training whose batches a plain DataLoader makes, with numbers by epoch, is the resident one to the last bit."""

import dataclasses
import multiprocessing
import subprocess
import sys

import pytest
import torch

from fastcifar.cli import main
from fastcifar.data.residency import place_images
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes import Augment, LoadingConfig, MixConfig, Recipe, SelectConfig, change, recipe_from_dict
from fastcifar.training import Listener, Trainer
from fastcifar.training.stopwatch import Stopwatch
from tests.small import MLP
from tests.training.test_kept import assert_same

RECIPES = {
    "cutout": change(MLP, {"augment.cutout": 8}),
    "last batch in part": dataclasses.replace(MLP, drop_last=False, batch_size=24, epochs=2.5),
    "selected, flipped by visit": dataclasses.replace(
        MLP, augment=Augment(flip="by-visit"), select=SelectConfig(keep=0.6, from_epoch=1)
    ),
    "mixed and transformed": change(MLP, {"mix": MixConfig(cutmix=1.0), "transforms.random_erasing.share": 0.5}),
    "two members": change(MLP, {"ensemble.members": 2, "ensemble.order": "shared"}),
    "bfloat16": change(MLP, {"dtype": "bfloat16"}),
}


def on_host(recipe, **config):
    return dataclasses.replace(recipe, loading=LoadingConfig("host", **config))


@pytest.fixture(scope="module")
def data():
    return make_synthetic(100, 20)


@pytest.mark.parametrize("name", RECIPES)
def test_with_numbers_by_epoch_it_trains_to_the_same_weights(data, name):
    recipe = RECIPES[name]
    resident = Trainer(recipe, data, "cpu").run(3)
    trainer = Trainer(on_host(recipe, workers=0, random="epoch", preprocess="host"), data, "cpu")
    for seed in (4, 3):  # in the same buffers
        run = trainer.run(seed)
    assert_same(run, resident)
    assert resident.record.waited_seconds is None and 0 < run.record.waited_seconds < run.record.train_seconds


def test_workers_and_images_elsewhere_change_nothing(data):
    recipe = RECIPES["cutout"]
    right = Trainer(on_host(recipe, workers=0), data, "cpu").run(3)
    elsewhere = place_images(data, "host", torch.device("cpu"))
    for images, config in ((data, {"workers": 2}), (elsewhere, {"workers": 1, "preprocess": "device"})):
        assert_same(Trainer(on_host(recipe, **config), images, "cpu").run(3), right)
    resident = Trainer(recipe, data, "cpu").run(3)
    assert any(not torch.equal(right.state[name], resident.state[name]) for name in right.state)


@pytest.mark.parametrize("step", [6, 9])
def test_it_goes_on_between_two_epochs_and_within_one(data, step):
    recipe, states = on_host(RECIPES["cutout"], workers=1), []
    whole = Trainer(recipe, data, "cpu").run(0)

    def save(now, total):
        if now == step:
            states.append(trainer.state.state_dict())
            raise KeyboardInterrupt

    trainer = Trainer(recipe, data, "cpu")
    with pytest.raises(KeyboardInterrupt):
        trainer.run(0, listeners=[Listener(on_step=save)])
    assert not multiprocessing.active_children()  # though the error that is told holds all frames
    assert_same(Trainer(recipe, data, "cpu").run(resume=states.pop()), whole)


def test_preprocessing_is_a_part_of_each_trainings_time(data, monkeypatch):
    trainer, calls = Trainer(on_host(MLP, workers=0, preprocess="host"), data, "cpu"), []

    def noted(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (calls.append(name), real(*args))[1])

    noted(Stopwatch, "__enter__")
    noted(Stopwatch, "__exit__")
    noted(trainer.state.feed._preprocess, "all")
    for _ in range(2):
        calls.clear()
        trainer.run(0)
        assert calls.count("all") == 1 and calls[calls.index("all") - 1] == "__enter__"
        assert trainer.state.feed._prepared is None


REFUSED = {
    "augment.early_crops": {"augment.early_crops": ((24, 0.5),)},
    "augment.brightness": {"augment.brightness": 0.1},
    "augment.contrast": {"augment.contrast": 0.1},
    "augment.flip": {"augment.flip": "alternating"},
    "ensemble.order": {"ensemble.members": 2},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_data_loader_does_not_do_is_refused_with_the_recipe(name):
    with pytest.raises(UserError, match=rf"^recipe: {name} is .* with loading.loader host; allowed: "):
        change(Recipe(), {"loading.loader": "host", **REFUSED[name]})
    changed = change(Recipe(), {"loading.random": "epoch", **REFUSED[name]})
    assert changed.loading.loader == "resident"


def test_any_flip_goes_with_numbers_by_epoch():
    for flip in ("alternating", "by-visit"):
        change(Recipe(), {"loading.loader": "host", "loading.random": "epoch", "augment.flip": flip})


def test_a_recipe_without_the_section_is_resident():
    fields = dataclasses.asdict(Recipe())
    del fields["loading"]
    assert recipe_from_dict(fields) == Recipe() and Recipe().loading == LoadingConfig("resident")


TRAIN = ["train", "--recipe", "warmstart-mlp", "--dataset", "synthetic", "--epochs", "1", "--device", "cpu"]
TRAIN += ["--train-size", "256", "--batch-size", "64", "--network.hidden", "8"]


def test_the_short_flag_is_the_field_and_a_run_says_what_made_its_batches(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--loader", "host", "--loading.workers", "0", "--out", "run"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("images "))
    assert line.endswith("%): steps waited for their images from a DataLoader")
    assert main(["eval", "run"]) == 0
    capsys.readouterr()
    for words, said in (
        (["--loader", "disk"], "loading.loader is 'disk'; allowed: one of resident, host"),
        (["--loader=host", "--parallel", "2"], "--parallel is 2; allowed: 1 with --loading.workers 2, or 0 workers"),
        (
            ["--loader=host", "--augment.contrast", "0.1"],
            "augment.contrast is 0.1 with loading.loader host; allowed: 0",
        ),
    ):
        assert main([*TRAIN, *words, "--out", "another"]) == 2
        assert capsys.readouterr().err == f"fastcifar: {said}\n"


def test_refusals_import_no_torch():
    code = (
        "import sys; from fastcifar.cli import main; assert main(sys.argv[1:]) == 2; assert 'torch' not in sys.modules"
    )
    words = [*TRAIN, "--loader", "host", "--augment.flip", "alternating"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "augment.flip is 'alternating'" in done.stderr, done.stderr
