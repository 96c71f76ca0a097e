"""The perceptron, and the choice of a network by a recipe."""

import torch

from fastcifar.models import build_model
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.mlp import MLP
from fastcifar.models.resnet import ResNet18
from fastcifar.recipes import Recipe
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config


def test_it_is_two_hidden_layers_of_a_hundred_units_with_relu():
    torch.manual_seed(0)
    model = MLP()
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {
        "hidden.0.weight": [100, 3072],
        "hidden.0.bias": [100],
        "hidden.1.weight": [100, 100],
        "hidden.1.bias": [100],
        "classifier.weight": [10, 100],
        "classifier.bias": [10],
    }
    x = torch.randn(4, 3, 32, 32)
    state, out = model.state_dict(), x.permute(0, 2, 3, 1).reshape(4, -1)
    for name in ("hidden.0", "hidden.1"):
        out = torch.relu(out @ state[f"{name}.weight"].T + state[f"{name}.bias"])
    torch.testing.assert_close(model(x), out @ state["classifier.weight"].T + state["classifier.bias"])


def test_hidden_layers_are_a_field_and_may_be_none():
    deep, linear = MLP(MLPConfig(hidden=(5, 6, 7)), classes=3), MLP(MLPConfig(hidden=()))
    assert [layer.out_features for layer in deep.hidden] == [5, 6, 7]
    assert deep.classifier.weight.shape == (3, 7)
    assert linear(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_recipes_section_is_the_network_that_is_built():
    sections = (DavidNetConfig(), ResNet18Config(width=2), MLPConfig(hidden=(9,)))
    built = [build_model(Recipe(network=section), 4, (1, 2, 3), (4, 5, 6)) for section in sections]
    assert [type(model) for model in built] == [DavidNet, ResNet18, MLP]
    assert (built[1].conv1.out_channels, built[2].hidden[0].out_features) == (2, 9)
    for model in built:
        assert (model.mean, model.std) == ((1, 2, 3), (4, 5, 6))
        assert model.get_submodule(model.head).out_features == 4


def test_ghost_batches_bind_the_batch_size_of_davidnet_alone():
    assert Recipe(network=MLPConfig(), batch_size=100).ghost_batch == 1
    assert Recipe(network=ResNet18Config(), batch_size=7).ghost_batch == 1
    assert Recipe().ghost_batch == 32
