"""A loss that is no number: the line names what is to blame by what is known, and what to change, to what."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import NonFiniteLoss
from fastcifar.recipes import NormalizeConfig
from fastcifar.recipes.optimizers.muon import MuonConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.start import WarmStart
from fastcifar.training import Listener, Trainer, train
from tests.small import BARE, DAVIDNET

DATA = make_synthetic(64, 16)
HIGH = dataclasses.replace(BARE, optimizer=SGDConfig(lr=1e30, momentum=0.0, weight_decay=0.0, bias_lr_factor=1.0))
MUON = dataclasses.replace(DAVIDNET, optimizer=MuonConfig(lr=1e30, bias_lr=0.05, head_lr=1e30))


def linear(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))


def steep(parameters):
    return torch.optim.SGD(parameters, lr=1e30)


class NaN:
    """A part that gives NaN from a call on."""

    def __init__(self, at, part):
        self.at, self.calls, self.part = at, 0, part

    def __call__(self, *args):
        self.calls += 1
        return self.part(*args) * (float("nan") if self.calls >= self.at else 1)


def message(recipe=BARE, **arguments):
    with pytest.raises(NonFiniteLoss) as raised:
        train(recipe, DATA, device="cpu", eval_every=0, **arguments)
    told = str(raised.value)
    assert "\n" not in told and told.count("; allowed: ") == 1 and raised.value.__context__ is None
    return told


LATER = {
    "rate": (HIGH, {}, "most likely optimizer.lr 1e+30 is too high; allowed: optimizer.lr 1e+29"),
    "several": (MUON, {}, "allowed: optimizer.lr 1e+29 with optimizer.bias_lr 0.005 with optimizer.head_lr 1e+29"),
    "kind": (BARE, {"optimizer": torch.optim.SGD, "optimizer.lr": 1e30}, "optimizer.lr 1e+30 is too high; allowed: "),
    "own rate": (
        BARE,
        {"optimizer": steep},
        "most likely the learning rate of steep, 1e+30, is too high; allowed: 1e+29 there",
    ),
    "loss": (
        BARE,
        {"loss": NaN(6, F.cross_entropy)},
        "at the step before: most likely the loss NaN gives what is not finite, or optimizer.lr 0.05 is too high; "
        "allowed: the loss NaN with finite values, optimizer.lr 0.005",
    ),
    "early": (
        HIGH,
        {"model": lambda classes: nn.Sequential(linear(classes), nn.Linear(classes, classes))},
        "1e+30 is too high, or the model <lambda> gives what is not finite; allowed: ",
    ),
    "float16": (
        HIGH,
        {"dtype": "float16"},
        "1e+30 is too high, or float16 too narrow; "
        "allowed: optimizer.lr 1e+29, dtype bfloat16, loss_scaling.dynamic true",
    ),
}


@pytest.mark.parametrize("case", LATER)
def test_after_the_first_step_it_is_the_rate_or_a_part_of_ones_own(case):
    recipe, arguments, expected = LATER[case]
    told = message(recipe, **arguments)
    assert expected in told and "step 1 of" not in told


FIRST = {
    "loss": ({"loss": NaN(1, F.cross_entropy)}, "most likely the loss NaN gives what is not finite; allowed: "),
    "augment": ({"augment": NaN(1, lambda images: images)}, "the augment NaN with finite values"),
    "model": ({"model": lambda classes: nn.Sequential(linear(classes), nn.Hardshrink(), Root())}, "the model <lambda>"),
    "float16": (
        {"normalize": NormalizeConfig(std=(1e-4,) * 3), "dtype": "float16"},
        "float16 too narrow; allowed: dtype b",
    ),
    "images": (
        {"normalize": NormalizeConfig(std=(1e-38,) * 3)},
        "most likely normalize.std or the network does not fit",
    ),
}


class Root(nn.Module):
    def forward(self, x):
        return (x - 1e9).sqrt()


@pytest.mark.parametrize("case", FIRST)
def test_at_the_first_step_no_learning_rate_is_to_blame(case):
    arguments, expected = FIRST[case]
    told = message(**arguments)
    assert told.startswith("the loss became ") and "at step 1 of 12 (epoch 1): most likely " in told
    assert expected in told and "optimizer.lr" not in told


def test_after_a_huge_first_loss_neither_is_it():
    told = message(normalize=NormalizeConfig(std=(1e-36,) * 3))
    assert "at step 2 of 12" in told and "most likely normalize.std or the network" in told and ".lr" not in told


def test_weights_to_begin_with_are_named(tmp_path):
    weights = {name: tensor * 1e30 for name, tensor in train(BARE, DATA, device="cpu").state.items()}
    save_file(weights, tmp_path / "huge.safetensors")
    told = message(init=WarmStart(tmp_path / "huge.safetensors"))
    assert f"most likely the weights in {tmp_path}/huge.safetensors are too large; allowed: other weights" in told


def test_the_loss_before_is_that_of_the_step_before_and_not_guessed_after_going_on():
    losses = []

    def loss(logits, labels):
        losses.append(F.cross_entropy(logits, labels))
        return losses[-1] * (float("nan") if len(losses) == 6 else 1)

    told = message(loss=loss)
    assert f"at step 6 of 12 (epoch 2), after {losses[4]:.4g} at the step before: " in told
    trainer, states = Trainer(BARE, DATA, "cpu"), []
    trainer.run(3, listeners=[Listener(on_epoch=lambda row: states.append(trainer.state.state_dict()))])
    other = Trainer(BARE, DATA, "cpu", loss=NaN(1, F.cross_entropy))
    with pytest.raises(NonFiniteLoss, match=r"at step 5 of 12 \(epoch 2\): most likely the loss NaN"):
        other.run(resume=states[0])


def test_an_error_of_another_training_is_left_as_it_is():
    error = NonFiniteLoss("of a training inside")

    def fail(row):
        raise error

    with pytest.raises(NonFiniteLoss) as raised:
        train(BARE, DATA, device="cpu", listeners=[Listener(on_epoch=fail)])
    assert raised.value is error
