"""Trainings on images of other sides than 32 pixels."""

import dataclasses

import pytest
import torch

from fastcifar import train
from fastcifar.data import Dataset
from fastcifar.errors import UserError
from fastcifar.recipes import Augment, AverageConfig, EvaluateConfig, SelectConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.training import evaluate, load_run
from tests import small

RECIPES = {
    "davidnet": dataclasses.replace(small.DAVIDNET, network=DavidNetConfig(widths=(2, 4, 4, 6), ghost_batch=2)),
    "speedrun": dataclasses.replace(small.EVERYTHING, early_batches=(), select=SelectConfig(), average=AverageConfig()),
    "resnet18": dataclasses.replace(small.MLP, network=ResNet18Config(width=2)),
    "mlp": small.MLP,
}


def made(side, count=6):
    images = torch.randint(256, (2 * count, side, side, 3), dtype=torch.uint8)
    labels = torch.arange(2 * count) % 3
    return Dataset.from_arrays(images[:count], labels[:count], images[count:], labels[count:])


@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize("name", RECIPES)
def test_every_network_trains_and_is_loaded_again(name, side, tmp_path):
    short = {"epochs": 1, "batch_size": 4, "evaluate": EvaluateConfig(tta="flip-crop", batch_size=4)}
    data = made(side)
    run = train(dataclasses.replace(RECIPES[name], **short), data, device="cpu", eval_every=0)
    assert run.record.dataset.side == run.side == side
    _, model, record = load_run(run.save(tmp_path / "run"))
    found = evaluate(model, data.test, run.recipe.evaluate)
    assert (found.accuracy, record.tta_accuracy) == (run.tta_accuracy, run.tta_accuracy)
    torch.testing.assert_close(found.logits, run.tta_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "augment", "message"),
    [
        (16, Augment(early_crops=((24, 0.5),)), r"augment.early_crops is \[\[24, 0.5\]\]; allowed: sides up to 16"),
        (12, Augment(crop=12), "augment.crop is 12; allowed: 0 to 11, below the side of the images, 12 pixels"),
        (12, Augment(cutout=13), "augment.cutout is 13; allowed: 0 to 12, the side of the images in pixels"),
        (7, Augment(), "network is davidnet, and images have 7 pixels a side; allowed: 8 or more for davidnet"),
    ],
)
def test_a_recipe_that_does_not_fit_the_images_is_refused_before_the_first_step(side, augment, message):
    with pytest.raises(UserError, match=f"^{message}"):
        train(dataclasses.replace(RECIPES["davidnet"], augment=augment, batch_size=4), made(side), device="cpu")
