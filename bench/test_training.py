"""A training step of every named recipe: narrower and on fewer images, as `--quick` has it, or whole with `--full`."""

import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import RECIPES, quick
from fastcifar.training import Trainer
from fastcifar.training.rehearse import step_on_noise


@pytest.mark.benchmark(group="training step")
@pytest.mark.reference("convolution")
@pytest.mark.parametrize("name", RECIPES)
def test_training_step(timed, device, full, name):
    recipe = RECIPES[name] if full else quick(RECIPES[name])[0]
    # Recipes may leave images out: there must be a batch of those that stay.
    trainer = Trainer(recipe, make_synthetic(4 * recipe.batch_size, 10), device)
    timed(step_on_noise(trainer))
