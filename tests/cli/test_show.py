"""`fastcifar show`: what is drawn is what a network sees, what its filters are, and what a data set holds."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from fastcifar.cli import main
from fastcifar.data.resize import resized
from fastcifar.data.synthetic import make_synthetic
from fastcifar.models import PatchWhitening
from fastcifar.recipes import change, get_recipe
from fastcifar.report.mosaic import Mosaic
from fastcifar.training import Trainer, load_run, train
from fastcifar.training.seen import images_seen
from tests.small import DAVIDNET, MLP

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch):
    """The pictures that are drawn."""
    found = []
    monkeypatch.setattr(Mosaic, "save", lambda mosaic, file: found.append((mosaic, str(file))))
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of runs of a network with convolutions and of one without."""
    folder, data = tmp_path_factory.mktemp("saved"), make_synthetic(64, 10)
    for name, recipe in {"conv": dataclasses.replace(DAVIDNET, epochs=1), "mlp": MLP}.items():
        train(recipe, data, device="cpu", eval_every=0).save(folder / name)
    return folder


@pytest.mark.usefixtures("few_images")
def test_augmentations_are_those_of_the_training(drawn, capsys):
    words = ["--dataset", "synthetic", "--network", "mlp", "--network.hidden", "8", "--batch-size", "32"]
    words += ["--augment.cutout", "8", "--seed", "5", "--dtype", "float32", "--train-size", "100"]
    assert main(["show", "augmentations", *words, "--images", "3", "--at-epochs", "4", "1", "-o", "a.svg"]) == 0
    assert capsys.readouterr().out == (
        "davidnet-mlp on synthetic, seed 5: what the network sees of 3 images; drawn in a.svg\n"
    )
    ((mosaic, file),) = drawn
    dataset = make_synthetic(256, 64).take(100)
    changes = {"network": "mlp", "batch_size": 32, "augment.cutout": 8, "dtype": "float32"}
    recipe = change(change(get_recipe("davidnet"), changes), {"network.hidden": (8,)})
    first = [dataset.train.labels.tolist().index(label) for label in range(3)]  # of each class in turn
    seen = images_seen(Trainer(recipe, dataset, "cpu"), 5, first, [0, 3])
    assert file == "a.svg" and mosaic.heads == ["epoch 1\n32 pixels", "epoch 4\n32 pixels"]
    assert mosaic.names == [f"{name}\nimage {at}" for name, at in zip(dataset.classes, first, strict=False)]
    for row, *wanted in zip(mosaic.rows, seen[0], seen[3], strict=True):
        for image, other in zip(row, wanted, strict=True):
            np.testing.assert_array_equal(image, other)


@pytest.mark.usefixtures("few_images")
def test_epochs_of_chosen_images_are_told(drawn):
    words = ["--recipe", "speedrun94", "--dataset", "synthetic", "--network.widths", "4", "4", "4"]
    words += ["--batch-size", "8", "--images", "1"]
    assert main(["show", "augmentations", *words]) == 0
    ((first, file),) = drawn
    assert file == "augmentations.png" and [row.shape for row in first.rows[0]] == [(24, 24, 3)] * 3 + [(28, 28, 3)] * 3
    assert "from epoch 3 on those of highest loss" in first.title


def test_filters_are_those_of_the_run(saved, drawn, capsys):
    _, model, _ = load_run(saved / "conv")
    layers = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.Conv2d)}
    first, *_, last = layers
    assert isinstance(layers[first], PatchWhitening)
    assert main(["show", "filters", str(saved / "conv")]) == 0
    assert main(["show", "filters", str(saved / "conv"), "--layer", last, "--filters", "2"]) == 0
    (patches, file), (deep, _) = drawn
    tiles = np.stack([image for row in patches.rows for image in row]).astype(float) - 127.5
    weight = layers[first].weight.permute(0, 2, 3, 1).numpy()
    weight = weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(tiles, 127.5 * weight / abs(weight).max(), atol=0.51)
    assert file == "filters.png" and f"{abs(weight).max():.3g}" in patches.title

    weight = layers[last].weight.detach().numpy()
    kept = sorted(np.argsort(-(weight**2).sum((1, 2, 3)))[:2])
    assert deep.names == [f"filter {number}" for number in kept]
    for number, row, notes in zip(kept, deep.rows, deep.notes, strict=True):
        sizes = (weight[number] ** 2).sum((1, 2))
        channels = [int(note.removeprefix("channel ")) for note in notes]
        assert len(channels) == min(8, len(sizes)) and channels == sorted(channels, key=lambda each: -sizes[each])
        wanted = 127.5 + 127.5 * weight[number][channels] / abs(weight[kept]).max()
        np.testing.assert_allclose(np.stack(row)[..., 0], wanted, atol=0.51)
    assert f"{last}, the 2 filters of {len(weight)} with the largest weights" in capsys.readouterr().out


def test_filters_of_networks_trained_at_once_are_the_first_members_or_those_that_are_named(drawn, tmp_path, capsys):
    recipe = dataclasses.replace(DAVIDNET, epochs=1, ensemble=dataclasses.replace(DAVIDNET.ensemble, members=2))
    train(recipe, make_synthetic(64, 10), device="cpu", eval_every=0).save(tmp_path / "two/seed-0")
    run, layer = str(tmp_path / "two/seed-0"), "networks.1.stem.conv"
    for words in (
        [],
        ["--member", "0"],
        ["--member", "1"],
        ["--layer", layer],
        ["--member", "1", "--layer", layer[11:]],
    ):
        assert main(["show", "filters", run, *words]) == 0
    first, zero, one, named, same = (mosaic for mosaic, _ in drawn)
    for mosaic, other in ((first, zero), (named, same)):
        for row, alike in zip(mosaic.rows, other.rows, strict=True):
            np.testing.assert_array_equal(np.stack(row), np.stack(alike))
    assert ", seed 0: networks.0." in first.title and ", seed 0, member 1: " in one.title
    capsys.readouterr()
    assert main(["show", "filters", str(tmp_path / "two")]) == 2
    assert capsys.readouterr().err == f"fastcifar: {run[:-7]} holds several runs; allowed: one of them, as in {run}\n"


def test_layers_that_are_not_there_are_refused(saved, capsys):
    _, model, _ = load_run(saved / "conv")
    name = next(name for name, each in model.named_modules() if isinstance(each, torch.nn.Conv2d))
    assert main(["show", "filters", str(saved / "conv"), "--layer", f"{name}x"]) == 2
    assert f"--layer is '{name}x'; did you mean '{name}'?; allowed: {name}, " in capsys.readouterr().err
    assert main(["show", "filters", str(saved / "mlp")]) == 2
    assert capsys.readouterr().err == (
        "fastcifar: the network mlp has no convolution; allowed: a run of one that has\n"
    )


def test_images_are_a_few_of_each_class(drawn, tmp_path, capsys, monkeypatch):
    data = make_synthetic(40, 12)
    images, labels = data.train.images.numpy(), data.train.labels.numpy()
    own = {"train_images": images, "train_labels": labels, "classes": [*data.classes, "none"]}
    np.savez(tmp_path / "own.npz", **own, test_images=data.test.images.numpy())
    words = ["show", "images", "--dataset", str(tmp_path / "own.npz"), "--per-class", "3"]
    assert main(words) == 0
    ((mosaic, file),) = drawn
    assert file == "images.png" and tuple(mosaic.names) == (*data.classes, "none")
    for label, row in enumerate(mosaic.rows):
        places = np.flatnonzero(labels == label)
        held = [
            images[at]
            for at in places[np.unique(np.linspace(0, len(places) - 1, min(3, len(places))).round().astype(int))]
        ]
        assert len(row) == 3 and [image is None for image in row] == [False] * len(held) + [True] * (3 - len(held))
        for image, other in zip(row, held, strict=False):
            np.testing.assert_array_equal(image, other)
    monkeypatch.setattr("fastcifar.data.resize.resized_splits", None)  # all images are not
    assert main([*words, "--resize", "20"]) == 0
    for row, larger in zip(mosaic.rows, drawn[1][0].rows, strict=True):
        for image, other in zip(row, larger, strict=True):
            assert (image is None) == (other is None)
            if image is not None:
                np.testing.assert_array_equal(resized(torch.from_numpy(image)[None], 20)[0], other)
    assert ", brought to 20 pixels" in drawn[1][0].title and "brought" not in mosaic.title
    capsys.readouterr()
    assert main([*words, "--split", "test"]) == 2
    assert "the test images of own.npz have no labels; allowed: --split with some" in capsys.readouterr().err
    assert main([*words, "--split", "val"]) == 2
    assert "--split is val, of which own.npz has no images" in capsys.readouterr().err
    assert main([*words[:-1], "1000"]) == 2
    assert "--per-class is 1000, of 11 classes: 11,000 images; allowed: up to 10,000 in all" in capsys.readouterr().err


def test_refusals_come_first_and_need_no_torch(without_torch, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_torch(
        "show augmentations --at-epochs 11",
        "show filters nowhere -o a.jpg",
    )
    assert main(["show", "augmentations", "--epochs", "3", "-o", "a.jpg"]) == 2
    assert "--out is 'a.jpg'; allowed: a file whose name ends in .png or .svg" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for words in (["augmentations"], ["images"]):
        assert main(["show", *words]) == 2
        assert "pip install 'fastcifar[plot]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_images")
def test_pictures_are_drawn_in_new_folders_and_in_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["show", "images", "--dataset", "synthetic", "--per-class", "1"]
    assert main([*words, "-o", "~/new/a.png"]) == 0
    assert capsys.readouterr().out.endswith(f"drawn in {tmp_path}/new/a.png\n") and (tmp_path / "new/a.png").is_file()
    assert main([*words, "--split", "val", "-o", "~/other/deep/a.png"]) == 2
    assert main([*words, "-o", "~/new/a.png/b.png"]) == 2
    assert "output folder ~/new/a.png cannot be made: ".replace("~", str(tmp_path)) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_help_begins_with_what_is_drawn_and_where(capsys):
    assert main(["show", "augmentations", "--help"]) == 0
    options = capsys.readouterr().out.split("Options:\n")[1].split("Run:")[0]
    assert options.startswith("  -o, --out FILE.png|.svg")
    assert "--images N" in options and "--at-epochs E" in options
