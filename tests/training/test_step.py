"""A training step works on tensors of the device alone, and in few operators."""

from functools import partial

import pytest
import torch

from fastcifar.costs.products import count_products
from fastcifar.data.synthetic import make_synthetic
from fastcifar.models import build_model
from fastcifar.optim import FlatModel, build_optimizer
from fastcifar.recipes import RECIPES
from fastcifar.recipes.optimizers.torch import TorchConfig
from fastcifar.training import resolve_dtype
from fastcifar.training.step import EpochTensors, TrainingStep
from fastcifar.training.timeline import Timeline
from tests.small import TYPICAL

CAPTURABLE = [name for name in TYPICAL if not isinstance(RECIPES[name].optimizer, TorchConfig)]


def step_without_data(recipe):
    """Return a step on the meta device: it raises where it asks for a value, or for a tensor elsewhere."""
    dataset = make_synthetic(2 * recipe.batch_size, 1)
    model = build_model(recipe, len(dataset.classes), dataset.mean, dataset.std).to("meta")
    flat = FlatModel(model, resolve_dtype("float16", torch.device("cpu")))
    timeline = Timeline(recipe, len(dataset.train), 32, model.frozen_from)
    for name in model.frozen_from:
        flat.group_of(name).steps = timeline.steps_until_frozen(name)
    optimizer = build_optimizer(flat, recipe, timeline.total_steps)
    dataset = dataset.to("meta")
    step = TrainingStep(recipe, dataset, model, optimizer, EpochTensors(recipe, dataset, steps_per_epoch=2))
    return partial(step, timeline.epochs[-1].stage)


@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_step_reads_no_value(name):
    step = step_without_data(RECIPES[name])
    for _ in range(2):
        step()


@pytest.mark.parametrize(("name", "convolutions", "others"), [("davidnet", 21, 35), ("speedrun94", 17, 37)])
def test_a_step_is_few_operators(name, convolutions, others):
    """Each is a GPU launch, some microseconds, or more; of Newton-Schulz each launch is counted."""
    step = step_without_data(RECIPES[name])
    step()
    count = count_products(step)
    large = sum(product.macs > 10**9 for product in count.products)  # all but the whitening and Newton-Schulz
    assert large == convolutions
    assert count.operators - large <= others and count.operators <= 60
