"""ResNet-18 (He, Zhang, Ren and Sun 2015) with torchvision's layers and names, for 32x32 images too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.kernels.operators import is_exported
from fastcifar.models.activation import norm_of
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.network import Linear, Network
from fastcifar.models.units import Units
from fastcifar.recipes.networks.resnet18 import ResNet18Config


class ResNet18(Network[ResNet18Config]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`; H and W are at least 8.

    A stem and four layers of two `BasicBlock`s, with 1, 2, 4 and 8 times `width` channels, each layer after the first
    at half the resolution; global mean, linear. Stem "imagenet" is torchvision's, a 7x7 convolution of stride 2 and a
    3x3 max-pool of stride 2: with width 64 and ten classes the network has torchvision's 11,181,642 parameters. Stem
    "cifar" is one 3x3 convolution of stride 1: 11,173,962 parameters, and at width 16 the 701,466 of Ash and Adams's
    code.

    Parameters and running statistics have torchvision's names; there is no num_batches_tracked. Initial values are
    torchvision's: convolutions normal with variance 2 / (outputs * kernel area) (He 2015, fan-out), scales 1, biases
    0, the linear layer torch's own. Batch norm is plain, over the whole batch; `config.norm` may be layer norm.
    """

    config_class = ResNet18Config
    head = "fc"

    def build(self, config: ResNet18Config, classes: int) -> None:
        width = config.width
        if config.stem == "cifar":
            self.conv1 = Conv3x3(self.in_channels, width)
        else:
            self.conv1 = nn.Conv2d(self.in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_of(width, config.activation, config.slope, config.norm)
        self.layer1 = _layer(width, width, 1, config)
        self.layer2 = _layer(width, 2 * width, 2, config)
        self.layer3 = _layer(2 * width, 4 * width, 2, config)
        self.layer4 = _layer(4 * width, 8 * width, 2, config)
        self.fc = Linear(8 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def crossings(cls, layer: str) -> tuple[int, int]:
        match layer.split("."):
            case [_, _, "conv1" | "bn1" | "downsample", *_]:
                return 0, 1
            case [_, _, "conv2" | "bn2", *_]:
                return 1, 0
        return 0, 0

    def units(self) -> Sequence[Units]:
        blocks = [f"layer{layer}.{block}" for layer in range(1, 5) for block in range(2)]
        return [Units(f"{block}.conv1", f"{block}.conv2", f"{block}.bn1", f"{block}.bn1") for block in blocks]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x))
        if self.config.stem == "imagenet":
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


def _layer(inputs: int, outputs: int, stride: int, config: ResNet18Config) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride, config), BasicBlock(outputs, outputs, 1, config))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm. The input is added before the last activation, where the shape
    changes after a 1x1 convolution with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: ResNet18Config) -> None:
        super().__init__()
        self.conv1 = Conv3x3(inputs, outputs, stride)
        self.bn1 = norm_of(outputs, config.activation, config.slope, config.norm)
        self.conv2 = Conv3x3(outputs, outputs)
        # Adds the shortcut, and for a ReLU takes that of the sum, in its own pass.
        fused = config.activation == "relu" and config.norm == "batch"
        self.bn2 = norm_of(outputs, "sum_relu" if fused else "none", kind=config.norm)
        self._activation = config.activation, config.slope
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                Shortcut(inputs, outputs, stride), norm_of(outputs, "none", kind=config.norm)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.bn1(self.conv1(x))), residual=shortcut)
        name, slope = self._activation
        if getattr(self.bn2, "activation", "none") != "none":  # none in older pickles, and in a norm put in its place
            return x
        # Nothing keeps the sum, so the activation may overwrite it.
        return F.leaky_relu_(x, slope) if name == "leaky_relu" else getattr(F, name)(x)


class Shortcut(nn.Conv2d):
    """A 1x1 convolution with a stride, without bias."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # As a convolution of every stride-th pixel a CPU takes 0.87 to 0.92 of the time for it and its gradient in
        # bfloat16 (Zen 4, two threads), as long in float32. And oneDNN of torch 2.13 writes beyond its memory in the
        # gradient of a strided one with fewer than 16 channels and images of 48 pixels or more.
        faulty = self.in_channels < 16 and input.shape[3] > 32
        if input.device.type == "cpu" and (faulty or not is_exported()):
            step = self.stride[0]
            return F.conv2d(input[:, :, ::step, ::step], self.weight)
        return super().forward(input)
