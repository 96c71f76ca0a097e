"""The networks, narrow, for tests of what each of them does under torch."""

import torch
from torch import nn

import fastcifar
from fastcifar.recipes.networks.speedrun import SpeedrunConfig
from tests.small import NARROW

NETWORKS = {
    "DavidNet": lambda: fastcifar.DavidNet(NARROW),
    "MLP": lambda: fastcifar.MLP(fastcifar.MLPConfig(hidden=(8,))),
    "MyrtleNet": lambda: fastcifar.MyrtleNet(fastcifar.MyrtleConfig(widths=(4, 4, 8, 8))),
    "LeNet": lambda: fastcifar.LeNet(fastcifar.LeNetConfig(channels=(4, 6), hidden=(8, 8))),
    "WideResNet": lambda: fastcifar.WideResNet(fastcifar.WideResNetConfig(depth=10, widen=1)),
    "HalfNorms": lambda: fastcifar.MyrtleNet(fastcifar.MyrtleConfig(widths=(4, 4, 8, 8), norm_precision="half")),
    "ResNet18": lambda: fastcifar.ResNet18(fastcifar.ResNet18Config(width=4)),
    "SpeedrunNet": lambda: fastcifar.SpeedrunNet(SpeedrunConfig(widths=(4, 4, 8), whitening_bias_epochs=1)),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def images(batch: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
