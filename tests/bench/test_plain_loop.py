"""A plain PyTorch loop beside ours, on a few images and a narrow network."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

import fastcifar
from bench import plain_loop, plain_networks
from bench.plain_loop import OURS, PLAIN, TUNED, Peer
from bench.tables import read_results
from fastcifar.errors import UserError
from fastcifar.recipes import change

pytest.importorskip("PIL")


@pytest.fixture
def narrow(monkeypatch):
    """ResNet-18 at width 2, on both sides."""
    plain = functools.partial(plain_networks.ResNet18, width=2)
    monkeypatch.setitem(plain_loop.PEERS, "resnet18", Peer(plain, 32))
    recipe = plain_loop.our_recipe
    monkeypatch.setattr(plain_loop, "our_recipe", lambda *args: change(recipe(*args), {"network.width": 2}))


def test_each_side_trains_in_turn_and_is_recorded(narrow, tmp_path, capsys):
    flags = ["--images", "40", "--batch-size", "16", "--rounds", "2", "--workers", "0"]
    assert plain_loop.main([*flags, "--save", str(tmp_path / "results.jsonl")]) == 0
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "round" in line]
    assert told == [f"{name}, round {number} of 2" for number in (1, 2) for name in (PLAIN, TUNED, OURS)]
    rows = read_results(tmp_path)
    assert [row["what"] for row in rows] == [f"an epoch of resnet18 by {name}" for name in (PLAIN, TUNED, OURS)]
    assert all(row["n"] == len(row["rates"]) == 2 and min(row["rates"]) > 0 for row in rows)
    assert "times as fast" in rows[0]["value"] and rows[2]["factors"] == [1.0, 1.0]


def test_factors_are_of_the_same_round():
    plain, _, ours = plain_loop.records({PLAIN: [1.0, 4.0, 9.0], TUNED: [2.0] * 3, OURS: [10.0, 8.0, 27.0]}, "x", "")
    assert plain["factors"] == [10.0, 2.0, 3.0]
    assert plain["value"] == "4.0 images/s; ours is 3.00 times as fast"
    assert plain["spread"] == "1.0 to 9.0 images/s, 2.00 to 10.00 times"
    assert ours["value"] == "10.0 images/s"


def test_the_networks_are_the_same_on_both_sides():
    ours = fastcifar.ResNet18(fastcifar.ResNet18Config(width=4))
    plain = plain_networks.ResNet18(10, width=4)
    missing, unexpected = plain.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(x), ours.eval()(x), rtol=1e-4, atol=1e-4)
    count = sum(each.numel() for each in plain_networks.ResNet18(10).parameters())
    assert count == 11_173_962
    with torch.device("meta"):
        counts = [sum(each.numel() for each in plain_networks.AlexNet(n).parameters()) for n in (10, 200)]
    assert counts == [57_044_810, 57_823_240]


def test_a_plain_image_is_normalized_and_resized(monkeypatch):
    monkeypatch.setattr(plain_loop, "JITTER", 0.0)
    monkeypatch.setattr(plain_loop.random, "random", lambda: 0.9)  # no flip
    data = dataclasses.replace(plain_loop.random_images(3), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    image, label = plain_loop.PlainImages(data, 32)[1]
    wanted = (data.train.images[1].permute(2, 0, 1) / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(
        data.std
    )[:, None, None]
    torch.testing.assert_close(image, wanted)
    assert label == data.train.labels[1]
    assert plain_loop.PlainImages(data, 70)[1][0].shape == (3, 70, 70)
    monkeypatch.setattr(plain_loop.random, "random", lambda: 0.1)
    pixels = data.train.images[1].numpy()
    assert np.array_equal(np.array(plain_loop.jittered(pixels)), pixels[:, ::-1])


def test_the_plain_loop_learns():
    peer = Peer(lambda classes: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, classes)), 32)
    loop = plain_loop.PlainLoop(peer, plain_loop.random_images(64), 16, 0, torch.device("cpu"), tuned=False)
    losses = [loop.train_one_epoch()[0] for _ in range(6)]
    assert losses[-1] < losses[0]


def test_ours_does_the_same_work():
    recipe = plain_loop.our_recipe("resnet18", 128)
    assert (recipe.batch_size, recipe.optimizer.kind, recipe.optimizer.lr) == (128, "AdamW", 3e-4)
    assert (recipe.augment.crop, recipe.augment.cutout, recipe.augment.flip) == (0, 0, "random")
    (jitter,) = recipe.transforms
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.3, 0.3, 0.3, 0.0)


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--images", "255"], ["--workers", "-1"], ["--batch-size", "0"]])
def test_what_cannot_be_measured_is_refused(flags):
    with pytest.raises(UserError, match="allowed: 1 or more rounds, 0 or more workers, and images for a batch"):
        plain_loop.main(flags)
