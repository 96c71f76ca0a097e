"""A training that ends once it answers enough of its images right."""

import dataclasses

import pytest
import torch

from fastcifar.data.synthetic import make_synthetic
from fastcifar.optim import FlatModel
from fastcifar.recipes import LookaheadConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.optimizers.sgd import SGDConfig
from fastcifar.training import Trainer
from tests.small import BARE

RECIPE = dataclasses.replace(
    BARE, epochs=12, batch_size=32, network=MLPConfig(hidden=(16,)), optimizer=SGDConfig(lr=0.02, bias_lr_factor=1.0)
)


@pytest.fixture(scope="module")
def data():
    return make_synthetic(96, 40)


def test_the_training_ends_after_the_first_epoch_that_reaches_the_goal_as_a_shorter_one_would(data):
    whole = Trainer(RECIPE, data).run(3, eval_every=0)
    goal = whole.rows[-1].train_accuracy / 2
    reached = next(row.epoch for row in whole.rows if row.train_accuracy >= goal)
    assert 1 < reached < 12  # else the goal shows nothing

    run = Trainer(RECIPE, data).run(3, eval_every=0, until_train_accuracy=goal)
    assert [row.train_accuracy for row in run.rows] == [row.train_accuracy for row in whole.rows[:reached]]
    assert (run.record.epochs, run.record.steps) == (reached, 3 * reached)
    assert run.rows[-1].test_accuracy == run.accuracy
    shorter = Trainer(dataclasses.replace(RECIPE, epochs=reached), data).run(3, eval_every=0)
    assert all(torch.equal(run.state[name], shorter.state[name]) for name in run.state)
    assert run.tta_accuracy == shorter.tta_accuracy


def test_a_goal_that_is_not_reached_takes_the_recipes_epochs(data):
    recipe = dataclasses.replace(RECIPE, epochs=2)
    run = Trainer(recipe, data).run(0, until_train_accuracy=1.0)
    assert (len(run.rows), run.record.epochs, run.record.steps) == (2, 2, 6)


def test_a_training_with_lookahead_that_ends_early_ends_on_the_slow_weights(data):
    """They meet the fast ones for the first time after the last step, so here they are those of the start."""
    recipe = dataclasses.replace(RECIPE, lookahead=LookaheadConfig(every=1000))
    trainer = Trainer(recipe, data)
    run = trainer.run(3, eval_every=0, until_train_accuracy=0.01)
    assert run.record.epochs == 1 and run.rows[0].train_accuracy >= 0.01
    fresh = FlatModel(trainer.new_network(seed=3)).state_dict()
    assert all(torch.equal(run.state[name], fresh[name]) for name in fresh)
