"""Changes to images from outside the package, in a training."""

from dataclasses import dataclass

import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.recipes import TransformConfig, change, setting, transform, trick
from fastcifar.training import Listener, Trainer
from tests import kinds
from tests.small import DAVIDNET, EVERYTHING


def shade(images, numbers, config):
    where, much = numbers[:, :, None, None, None].unbind(1)
    return images - config.most * much * (where < config.share)


@pytest.fixture(autouse=True)
def registered():
    with kinds.forgotten():

        @transform("shade", shade)
        @dataclass(frozen=True)
        class ShadeConfig(TransformConfig):
            draws = 2
            share: float = trick(0.0, off=0.0, at_least=0, at_most=1, source="a test")
            most: float = setting(0.5, at_least=0)

        yield


@pytest.fixture(scope="module")
def data():
    return make_synthetic(100, 20)


def same(one, other):
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_a_transform_changes_the_training_only_where_it_is_on(data):
    bare = Trainer(DAVIDNET, data, "cpu").run(3)
    off, on, less = (
        Trainer(change(DAVIDNET, {"transforms.shade": fields}), data, "cpu").run(3)
        for fields in ({"share": 0.0, "most": 0.9}, {"share": 0.5}, {"share": 0.5, "most": 0.4})
    )
    assert same(bare, off) and not same(bare, on) and not same(on, less)


def test_each_epoch_has_numbers_of_its_own_and_a_training_goes_on_from_any_step(data):
    recipe, numbers, states = change(EVERYTHING, {"transforms.shade.share": 0.5}), [], []
    trainer = Trainer(recipe, data, "cpu")

    def look(step, total):
        states.append(trainer.state.state_dict())
        numbers.append(states[-1]["epoch"]["numbers"])

    whole = trainer.run(3, listeners=[Listener(on_step=look)])
    assert numbers[0].shape == (100, 2)
    assert torch.equal(numbers[0], numbers[1]) and not torch.equal(numbers[0], numbers[-1])
    for state in (states[1], states[len(states) // 2], states[-1]):
        assert same(Trainer(recipe, data, "cpu").run(resume=state), whole)
    with pytest.raises(UserError, match=r"recipe.transforms.shade.kind is shade there and None here"):
        Trainer(EVERYTHING, data, "cpu").run(resume=states[1])


@pytest.mark.gpu
def test_a_captured_training_is_one_step_by_step(data):
    recipe = change(EVERYTHING, {"transforms.shade.share": 0.5, "dtype": "float32"})
    trainer = Trainer(recipe, data.to("cuda"), "cuda")
    run = trainer.run(3)
    assert trainer.not_captured is None
    assert run.rows[-1].train_loss == pytest.approx(Trainer(recipe, data, "cpu").run(3).rows[-1].train_loss, rel=0.05)
