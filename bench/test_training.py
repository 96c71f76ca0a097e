"""A training step of every named recipe but the ladder's rungs on the way to DavidNet: narrower and on fewer images, as
`--quick` has it, or whole with `--full`."""

import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import DEFAULT_RECIPE, RECIPES, quick
from fastcifar.recipes.named.ladder import LADDER
from fastcifar.training import Trainer
from fastcifar.training.rehearse import step_on_noise


@pytest.mark.benchmark(group="training step")
@pytest.mark.reference("convolution")
@pytest.mark.parametrize(
    "name", [name for name in RECIPES if name not in {rung.name for rung in LADDER} - {DEFAULT_RECIPE}]
)
def test_training_step(timed, device, full, name):
    recipe = RECIPES[name] if full else quick(RECIPES[name])[0]
    # Recipes may leave images out: there must be a batch of those that stay.
    data = make_synthetic(4 * recipe.batch_size, 10)
    trainer = Trainer(recipe, data.resize(recipe.network.side_for(data.train.side)), device)
    timed(step_on_noise(trainer))
