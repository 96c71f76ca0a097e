"""Loss by the time since an image was trained on, against a forward pass of the same images."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcifar.data import EpochPlan
from fastcifar.data.synthetic import make_synthetic
from fastcifar.diagnose import DiagnoseForgetting, Forgetting, read_diagnosis
from fastcifar.diagnose.forgetting import PARTS
from fastcifar.recipes import EMAConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.training import Listener, Trainer, train
from tests.small import BARE, DAVIDNET

RECIPE = dataclasses.replace(
    DAVIDNET,
    epochs=1.5,
    network=DavidNetConfig(widths=(2, 2, 2, 2), ghost_batch=8, residual=()),
    ema=EMAConfig(decay=0.0),  # the run's model has the weights themselves
)


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


def test_losses_are_those_of_the_images_an_epoch_visited(data, tmp_path):
    file = tmp_path / "forgetting.npz"
    listener, networks = DiagnoseForgetting(file, images=8), []
    trainer = Trainer(RECIPE, data, "cpu")
    trainer.run(3, listeners=[Listener(on_epoch=lambda row: networks.append(copy.deepcopy(trainer.network))), listener])
    found = listener.found
    assert found.steps.tolist() == [0, 4, 6]
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))

    def loss(network, split, places):
        for norm in network.train().modules():
            norm.track_running_stats = False
        with torch.no_grad():
            logits = network((split.images[places].permute(0, 3, 1, 2).float() - mean) / std)
        return F.cross_entropy(logits, split.labels[places]).item()

    for moment, (network, count) in enumerate(zip(networks, (64, 32), strict=True), start=1):  # then half an epoch
        order = EpochPlan.draw(64, RECIPE.augment, moment - 1, 3).indices[:count].flip(0)
        for part, places in enumerate(order.tensor_split(PARTS)):
            few = places[torch.linspace(0, len(places) - 1, 8).round().long()]
            assert found.seen[moment, part] == pytest.approx(loss(network, data.train, few), rel=1e-4)
        fresh = loss(network, data.test, torch.arange(16))  # ghost batches of 8 out of 20
        assert found.fresh[moment] == pytest.approx(fresh, rel=1e-4)
    assert found.age[-1].tolist() == [4.5, 12.5, 20.5, 28.5] and found.age[1].tolist() == [8.5, 24.5, 40.5, 56.5]
    assert np.isnan(found.seen[0]).all() and found.fresh[0] > 0 and np.isnan(found.rate[0])
    kept = read_diagnosis(file)
    assert isinstance(kept, Forgetting) and np.array_equal(kept.seen, found.seen, equal_nan=True)


def test_a_training_is_the_same_with_it(data):
    plain, heard = (
        train(RECIPE, data, seed=1, device="cpu", listeners=listeners).state
        for listeners in ([], [DiagnoseForgetting(moments=1)])
    )
    assert plain.keys() == heard.keys() and all(torch.equal(plain[name], heard[name]) for name in plain)


def test_a_training_that_goes_on_without_its_file_says_at_which_step(data, tmp_path):
    states = []
    keep = Listener(on_epoch=lambda row: states.append(trainer.state.state_dict()))
    trainer = Trainer(RECIPE, data, "cpu")
    trainer.run(0, eval_every=0, listeners=[keep])
    listener = DiagnoseForgetting(tmp_path / "gone.npz", images=8)
    trainer.run(0, eval_every=0, listeners=[listener], resume=states[0])
    assert listener.found.steps.tolist() == [4, 6]


def test_no_image_is_left_alone_for_a_norm_and_one_alone_has_no_loss():
    """The last norm of this network sees one pixel of an image."""
    recipe = dataclasses.replace(BARE, network=ResNet18Config(width=2, stem="imagenet"), batch_size=32)
    data = make_synthetic(64, 513).resize(32)
    diagnosis = DiagnoseForgetting()
    train(recipe, data, listeners=[diagnosis])
    assert np.isfinite(diagnosis.found.fresh).all()
    one = dataclasses.replace(data, test=data.test.subset(torch.arange(1)))
    train(recipe, one, listeners=[diagnosis := DiagnoseForgetting()])
    assert np.isnan(diagnosis.found.fresh).all()


def test_what_is_forgotten_is_the_oldest_part_less_the_newest(data):
    listener = DiagnoseForgetting(images=16, moments=2)
    train(BARE, data, device="cpu", listeners=[listener])
    seen = np.array([[np.nan] * PARTS, [1.0, 1.1, 1.2, 1.3], [1.0, 1.0, 1.0, 1.2]])
    found = dataclasses.replace(listener.found, seen=seen, fresh=np.array([2.3, 1.5, 0.9]))
    assert found.forgotten == pytest.approx([np.nan, 0.3, 0.2], nan_ok=True)
    newest, oldest, fresh = found.figures()["loss"].lines
    assert newest.y == [None, 1.0, 1.0] and oldest.y == [None, 1.3, 1.2] and fresh.y == [2.3, 1.5, 0.9]
    by_age, level = found.figures()["age"].lines
    assert by_age.y == [1.0, 1.0, 1.0, 1.2] and level.y == [0.9] * PARTS and list(by_age.x) == sorted(by_age.x)
