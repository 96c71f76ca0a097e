"""Networks from outside the package, built from what their configuration says."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from fastcifar.costs.flops import count_recipe
from fastcifar.data import Dataset
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.models import Network, OwnNetwork, build_model
from fastcifar.recipes import Recipe
from fastcifar.recipes.networks import NetworkConfig, network
from fastcifar.training import evaluate, load_run, train
from tests import kinds

MEAN, STD = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)


@pytest.fixture(autouse=True)
def forget():
    with kinds.forgotten():
        yield


class Plain(nn.Module):
    def __init__(self, config, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, config.width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(config.width, classes)

    def forward(self, x):
        return self.head(self.layers(x))


def plain():
    @network("plain", Plain)
    @dataclass(frozen=True)
    class PlainConfig(NetworkConfig):
        width: int = 4

    return PlainConfig


def test_a_module_of_configuration_and_classes_becomes_an_own_network():
    built = build_model(Recipe(network=plain()(width=6)), 7, MEAN, STD)
    assert isinstance(built, OwnNetwork) and isinstance(built.module, Plain)
    assert (built.module.head.in_features, built.module.head.out_features) == (6, 7)
    assert (built.mean, built.std) == (MEAN, STD)


def test_a_class_of_network_is_given_mean_and_std_too():
    class Ours(Network):
        head = "layer"

        def build(self, config, classes):
            self.layer = nn.Linear(config.width, classes)

        def unscaled(self, x):
            return self.layer(x.mean((2, 3)))

    @network("ours", Ours)
    @dataclass(frozen=True)
    class OursConfig(NetworkConfig):
        width: int = 3

    built = build_model(Recipe(network=OursConfig()), 7, MEAN, STD)
    assert type(built) is Ours and (built.mean, built.std) == (MEAN, STD)
    assert (built.config, built.layer.out_features) == (OursConfig(), 7)


def test_it_trains_and_is_counted_and_loaded_as_ours_are(tmp_path):
    recipe = Recipe(network=plain()(width=5), epochs=1, batch_size=20, dtype="float32")
    data = make_synthetic(60, 20)
    run = train(recipe, data, seed=3, device="cpu")
    assert run.record.network is None and type(run.model) is Plain and run.recipe == recipe
    assert not torch.equal(run.state["head.weight"], train(recipe, data, seed=4, device="cpu").state["head.weight"])
    loaded, model, _ = load_run(run.save(tmp_path / "run"))
    assert loaded == recipe and type(model) is Plain
    assert evaluate(model, data.test).accuracy == run.tta_accuracy
    before = torch.random.get_rng_state()
    count = count_recipe(recipe)
    assert count.evaluation.macs == 30 * 30 * 27 * 5 + 5 * 10
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_is_tried_on_images_of_every_side():
    def of_one_size(config, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))

    @network("one-size", of_one_size)
    @dataclass(frozen=True)
    class OneSizeConfig(NetworkConfig):
        pass

    recipe = Recipe(network=OneSizeConfig())
    build_model(recipe, 10, MEAN, STD)
    with pytest.raises(UserError, match=r"^the model does not take images \[2, 3, 24, 24\]: "):
        build_model(recipe, 10, MEAN, STD, sides=(32, 24))


def test_images_of_other_sides_than_its_configuration_takes_are_refused():
    config = plain()

    @network("two-sizes", Plain)
    @dataclass(frozen=True)
    class TwoSizesConfig(config):
        sides: ClassVar[tuple[int, ...]] = (32, 64)

    recipe = Recipe(network=TwoSizesConfig())
    build_model(recipe, 10, MEAN, STD, sides=(64,))
    message = r"^network is two-sizes, and images have 28 pixels a side; allowed: 32 or 64 for two-sizes$"
    with pytest.raises(UserError, match=message):
        build_model(recipe, 10, MEAN, STD, sides=(32, 28))
    images = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    data = Dataset.from_arrays(images, [0, 1] * 10, images[:2], [0, 1])
    with pytest.raises(UserError, match="network is two-sizes, and images have 8 pixels a side"):
        train(dataclasses.replace(recipe, batch_size=10), data, device="cpu")


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (lambda config, classes: None, "the model gives an object of type NoneType; allowed: a torch.nn.Module"),
        (lambda config, classes: nn.Flatten(), r"the model gives \[2, 3072\] for images"),
    ],
    ids=["nothing", "no logits"],
)
def test_a_builder_that_gives_no_network_is_refused(builder, message):
    @network("wrong", builder)
    @dataclass(frozen=True)
    class WrongConfig(NetworkConfig):
        pass

    with pytest.raises(UserError, match=f"^{message}"):
        build_model(Recipe(network=WrongConfig()), 10, MEAN, STD)
