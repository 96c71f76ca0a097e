"""Evaluation of the main recipes' networks with each test-time augmentation, in the training's compute type."""

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.recipes import RECIPES, EvaluateConfig, quick
from fastcifar.training import Trainer, evaluate

TTA = get_args(get_type_hints(EvaluateConfig)["tta"])
NETWORKS = ("davidnet", "speedrun94")


@pytest.mark.benchmark(group="evaluation")
@pytest.mark.reference("convolution")
@pytest.mark.parametrize("tta", TTA)
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation(timed, device, full, name, tta):
    recipe = RECIPES[name] if full else quick(RECIPES[name])[0]
    trainer = Trainer(recipe, make_synthetic(4 * recipe.batch_size, 10_000 if full else 200), device)
    timed(lambda: evaluate(trainer.model, trainer.dataset.test, replace(recipe.evaluate, tta=tta)))
