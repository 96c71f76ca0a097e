"""The network of the CIFAR-10 speed records: airbench's (Jordan 2024), in the shapes of all its variants."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.blocks import ACTIVATIONS, global_pool
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.network import Network
from fastcifar.models.whitening import PatchWhitening
from fastcifar.recipes.networks.speedrun import SpeedrunConfig


class SpeedrunNet(Network[SpeedrunConfig]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`; H and W are at least 16.

    Frozen 2x2 patch whitening without padding to 12 filters and their negatives, a bias that trains for some epochs,
    GELU. Three blocks, by default of 64, 256 and 256 channels: 3x3 convolution, 2x2 max-pool, batch norm, GELU, 3x3
    convolution, batch norm, GELU. Global max-pool, linear without bias, divided by its inputs. Every choice is a field
    of `SpeedrunConfig`; the defaults are those of airbench94_muon.

    Initial values: the first filters of a 3x3 convolution, as many as it has inputs, are the identity (Dirac); all
    others are torch's own, and so is the linear layer, rescaled to a given standard deviation.
    """

    config_class = SpeedrunConfig
    head = "classifier"
    first_block = "blocks.0"

    def build(self, config: SpeedrunConfig, classes: int) -> None:
        trains_bias = config.whitening_bias_epochs > 0
        self.whitening = PatchWhitening(
            3, config.whitening_size, config.whitening_eps, padding=0, negatives=True, bias=trains_bias
        )
        if trains_bias:
            self.frozen_from = {"whitening.bias": config.whitening_bias_epochs}
        channels = itertools.pairwise((self.whitening.out_channels, *config.widths))
        self.blocks = nn.Sequential(*(Block(inputs, outputs, config) for inputs, outputs in channels))
        self.classifier = nn.Linear(config.widths[-1], classes, bias=False)
        self.logit_scale = config.logit_scale or 1 / config.widths[-1]
        if config.head_std:
            with torch.no_grad():
                self.classifier.weight.mul_(config.head_std / self.classifier.weight.std())

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set the whitening filters from the first `config.whitening_images` of the uint8 training images
        `[N, H, W, 3]`."""
        self.whitening.fit(images[: self.config.whitening_images], self.mean, self.std)

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        sides = [side - self.config.whitening_size + 1 for side in x.shape[2:]]
        bordered = _leave_a_rest(sides)
        x = self.whitening.activated(x, self.config.whitening_activation, bordered)
        for block in self.blocks:
            sides = [side // 2 for side in sides]
            border = block is not self.blocks[-1] and _leave_a_rest(sides)
            x = block(x, bordered, border)
            bordered = border
        return self.classifier(global_pool(x, self.config.final_pool))


def _leave_a_rest(sides: list[int]) -> bool:
    """Return True for images of which a 2x2 pool leaves out a row and a column: the convolution before it needn't
    compute them. Also False for sides that a trace or an export leaves open."""
    return all(isinstance(side, int) and side % 2 == 1 for side in sides)


class Block(nn.Module):
    """3x3 convolutions, each with batch norm and activation, the first with a 2x2 max-pool before its norm.

    With a residual, the first activation is added to the last norm's output, before the last activation. `bordered`
    input, of odd sides, and with `border` the output have a row of zeros above and a column of zeros to the left: what
    `Conv3x3` needs to compute no more of the first convolution than its pool reads.
    """

    def __init__(self, inputs: int, outputs: int, config: SpeedrunConfig) -> None:
        super().__init__()
        self.activation, self.residual = config.activation, config.residual
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for number in range(config.depth):
            conv = Conv3x3(outputs if number else inputs, outputs)
            if config.dirac:
                nn.init.dirac_(conv.weight.data[: conv.in_channels])
            adds = config.residual and number == config.depth - 1
            self.convs.append(conv)
            self.norms.append(
                GhostBatchNorm(
                    outputs,
                    config.ghost_batch,
                    activation="none" if adds else config.activation,
                    pool=number == 0,
                    freeze_scale=config.freeze_scale,
                    momentum=config.norm_momentum,
                    eps=config.norm_eps,
                )
            )

    def forward(self, x: torch.Tensor, bordered: bool = False, border: bool = False) -> torch.Tensor:
        last = self.norms[-1]
        shortcut = x = self.norms[0](self.convs[0](x, bordered), border=border and last is self.norms[0])
        for conv, norm in list(zip(self.convs, self.norms, strict=True))[1:]:
            x = norm(conv(x), shortcut if self.residual and norm is last else None, border and norm is last)
        return ACTIVATIONS[self.activation](x) if self.residual else x
