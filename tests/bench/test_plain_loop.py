"""A plain PyTorch loop beside ours, on a few images and a narrow network."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

import fastcifar
from bench import plain_loop, plain_networks
from bench.plain_loop import OURS, OURS32, PLAIN, TUNED, Peer
from bench.tables import read_results
from fastcifar.errors import UserError
from fastcifar.recipes import change
from fastcifar.training import resolve_dtype

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
    sides = [f"{PLAIN} (0 workers)", f"{TUNED} (0 workers)", f"{OURS32} (float32)", f"{OURS} (bfloat16)"]
    if resolve_dtype("auto", torch.device("cpu")) == torch.float32:
        sides[3] = f"{OURS} (float32)"
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "round" in line]
    assert told == [f"{side}, round {number} of 2" for number in (1, 2) for side in sides]
    rows = read_results(tmp_path)
    assert [row["what"] for row in rows] == [f"an epoch of resnet18 by {side}" for side in sides]
    assert all(row["n"] == len(row["rates"]) == 2 and min(row["rates"]) > 0 for row in rows)
    assert "times as fast" in rows[0]["value"] and rows[3]["factors"] == [1.0, 1.0]


def test_factors_are_of_the_same_round():
    rates = {PLAIN: [1.0, 4.0, 9.0], TUNED: [2.0] * 3, OURS: [10.0, 8.0, 27.0]}
    plain, _, ours = plain_loop.records(rates, dict.fromkeys(rates, ""), "x", "")
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
    data = dataclasses.replace(plain_loop.random_images(3), mean=(127.0, 100.0, 80.0), std=(60.0, 50.0, 70.0))
    image, label = plain_loop.PlainImages(data, 32)[1]
    wanted = fastcifar.normalize(data.train.images[1:2], data.mean, data.std)[0]
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


def test_a_loop_takes_the_number_of_workers_that_is_faster_for_it(monkeypatch):
    monkeypatch.setattr(
        plain_loop, "seconds_of", lambda call, _: {0: 3.0, 1: 1.0, 2: 2.0}[call.__self__.loader.num_workers]
    )
    monkeypatch.setattr(plain_loop.PlainLoop, "train_one_epoch", lambda self: (0.0, 0.0))
    peer = Peer(lambda classes: torch.nn.Linear(1, classes), 32)
    loop = plain_loop.fastest_loop(peer, plain_loop.random_images(16), 16, (0, 1, 2), torch.device("cpu"), False)
    assert loop.loader.num_workers == 1
