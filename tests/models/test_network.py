"""All our networks have in common: one constructor, layout in memory, names of their own."""

import pytest
import torch

from fastcifar.models.alexnet import AlexNet
from fastcifar.models.davidnet import DavidNet
from fastcifar.models.lenet import LeNet
from fastcifar.models.mlp import MLP
from fastcifar.models.network import CENTERED
from fastcifar.models.resnet import ResNet18
from fastcifar.models.speedrun import SpeedrunNet
from fastcifar.models.wideresnet import WideResNet
from fastcifar.recipes.networks.alexnet import AlexNetConfig
from fastcifar.recipes.networks.davidnet import DavidNetConfig
from fastcifar.recipes.networks.lenet import LeNetConfig
from fastcifar.recipes.networks.mlp import MLPConfig
from fastcifar.recipes.networks.resnet18 import ResNet18Config
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from fastcifar.recipes.networks.wideresnet import WideResNetConfig

NETWORKS = {
    DavidNet: (DavidNetConfig, {"widths": (4, 8, 12, 16)}),
    SpeedrunNet: (SpeedrunConfig, {"widths": (4, 8, 8)}),
    ResNet18: (ResNet18Config, {"width": 2}),
    MLP: (MLPConfig, {"hidden": (5,)}),
    AlexNet: (AlexNetConfig, {"widths": (2, 2, 3, 3, 2), "hidden": (4, 5)}),
    LeNet: (LeNetConfig, {"hidden": (5, 6)}),
    WideResNet: (WideResNetConfig, {"depth": 10, "widen": 1}),
}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_they_are_made_alike(network):
    config_class, narrow = NETWORKS[network]
    default, model = network(), network(config_class(**narrow), 7, (1, 2, 3), [4, 5, 6])
    assert (default.config, default.mean, default.std) == (config_class(), CENTERED, CENTERED)
    assert (model.config, model.mean, model.std) == (config_class(**narrow), (1, 2, 3), (4, 5, 6))
    assert default.get_submodule(default.head).out_features == 10
    assert model.get_submodule(model.head).out_features == 7
    assert model.module is model
    filters = [p for p in model.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters) and bool(filters) == (
        network != MLP
    )
    side = config_class().side_for(32)
    assert model.eval()(torch.zeros(2, 3, side, side)).shape == (2, 7)
