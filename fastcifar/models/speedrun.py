"""The network of the CIFAR-10 speed records: airbench's (Jordan 2024), in the shapes of all its variants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.models.batchnorm import GhostBatchNorm
from fastcifar.models.blocks import ACTIVATIONS, global_pool
from fastcifar.models.convolution import Conv3x3
from fastcifar.models.network import Network
from fastcifar.models.units import Units
from fastcifar.models.whitening import PatchWhitening
from fastcifar.recipes.networks.speedrun import SpeedrunConfig


class SpeedrunNet(Network[SpeedrunConfig]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`; H and W are at least the
    whitening's side and 7.

    Frozen 2x2 patch whitening without padding to 12 filters and their negatives, a bias that trains for some epochs,
    GELU. Three blocks, by default of 64, 256 and 256 channels: 3x3 convolution, 2x2 max-pool, batch norm, GELU, 3x3
    convolution, batch norm, GELU. Global max-pool, linear without bias, divided by its inputs. Every choice is a field
    of `SpeedrunConfig`; the defaults are those of airbench94_muon.

    Initial values: the first filters of a 3x3 convolution, as many as it has inputs, are the identity (Dirac); all
    others are torch's own, and so is the linear layer, rescaled to a given standard deviation.

    What a hook on a layer sees may have a border of zeros, lack the last row and column that no pool reads, or be
    pooled by the convolution before its norm: see `Block`.
    """

    config_class = SpeedrunConfig
    head = "classifier"
    first_block = "blocks.0"

    def build(self, config: SpeedrunConfig, classes: int) -> None:
        trains_bias = config.whitening_bias_epochs > 0
        size, eps = config.whitening_size, config.whitening_eps
        self.whitening = PatchWhitening(self.in_channels, size, eps, padding=0, negatives=True, bias=trains_bias)
        if trains_bias:
            self.frozen_from = {"whitening.bias": config.whitening_bias_epochs}
        inputs = (self.whitening.out_channels, *config.widths)
        self.blocks = nn.Sequential(*(Block(inputs[number], config, number) for number in range(3)))
        self.classifier = nn.Linear(config.widths[-1], classes, bias=False)
        self.logit_scale = config.logit_scale or 1 / config.widths[-1]
        if config.head_std:
            with torch.no_grad():
                self.classifier.weight.mul_(config.head_std / self.classifier.weight.std())

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set the whitening filters from the first `config.whitening_images` of the uint8 training images
        `[N, H, W, 3]`."""
        self.whitening.fit(images[: self.config.whitening_images], self.mean, self.std)

    def units(self) -> Sequence[Units]:
        """Return those of each convolution but, in blocks with a residual, the two whose outputs are summed."""
        config, blocks = self.config, range(len(self.blocks))
        path = [(block, number) for block in blocks for number in range(config.depth)]
        readers = [*(f"blocks.{block}.convs.{number}" for block, number in path[1:]), self.head]
        summed = {0, config.depth - 1} if config.residual else set()
        return [
            Units(f"{at}.convs.{number}", reader, f"{at}.norms.{number}", f"{at}.norms.{number}")
            for (block, number), reader in zip(path, readers, strict=True)
            if number not in summed
            for at in [f"blocks.{block}"]
        ]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        borders = self._borders(x)
        x = self.whitening.activated(x, self.config.whitening_activation, borders[0])
        for block, bordered, border in zip(self.blocks, borders, [*borders[1:], False], strict=True):
            x = block(x, bordered, border) if bordered or border else block(x)
        pool = self.config.final_pool
        return global_pool(x, pool) if pool != "max+avg" else global_pool(x, "max") + global_pool(x, "avg")

    def _borders(self, x: torch.Tensor) -> list[bool]:
        """Return whether the input of each block has a border, for images `x`: where its sides are odd, so that the
        block's pool leaves out a row and a column. At the first block not where that would be another pass over its
        input. Nowhere for sides that a trace or an export leaves open, and with layers of another's in place of these.
        """
        blocks = [block for block in self.blocks if isinstance(block, Block) and block.knows_borders()]
        if len(blocks) < len(self.blocks):
            return [False] * len(self.blocks)
        borders, sides = [], [side - self.config.whitening_size + 1 for side in x.shape[2:]]
        for block in blocks:
            odd = all(isinstance(side, int) and side % 2 == 1 for side in sides)
            borders.append(odd and isinstance(block.convs[0], Conv3x3))
            sides = [side // 2 for side in sides]
        borders[0] = borders[0] and self.whitening.in_one_pass(x)
        return borders


class Block(nn.Module):
    """3x3 convolutions, each with batch norm and activation, the first with a 2x2 max-pool before its norm.

    With a residual, the first activation is added to the last norm's output, before the last activation or after it.
    Filters may have other sides, and the channels in between another number: see `SpeedrunConfig`. `bordered`
    input, of odd sides, and with `border` the output have a row of zeros above and a column of zeros to the left: what
    `Conv3x3` needs to compute no more of the first convolution than its pool reads. On a GPU that convolution pools its
    result itself where it can (`Conv3x3.pools`).
    """

    def __init__(self, inputs: int, config: SpeedrunConfig, block: int) -> None:
        super().__init__()
        self.activation, self.residual, self.after = config.activation, config.residual, config.residual_after
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for number in range(config.depth):
            outputs = (number == 1 and config.inner_widths[block]) or config.widths[block]
            conv = _convolution(inputs, outputs, config.kernels[block][min(number, 2)])
            if config.dirac:
                nn.init.dirac_(conv.weight.data[: conv.in_channels])
            adds = config.residual and not config.residual_after and number == config.depth - 1
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
            inputs = outputs

    def knows_borders(self) -> bool:
        """Return True unless what takes and gives a border was replaced, or has a `forward` of another's."""
        first = any(_is_ours(self.convs[0], kind) for kind in (Conv3x3, Conv2x2))
        return first and _is_ours(self, Block) and _is_ours(self.norms[-1], GhostBatchNorm)

    def _conv_pools(self, x: torch.Tensor) -> bool:
        """Return True if the first convolution of `x` pools its result, and its norm does not."""
        conv, norm = self.convs[0], self.norms[0]
        if not (isinstance(conv, Conv3x3) and isinstance(norm, GhostBatchNorm) and norm.pool):
            return False
        return _is_ours(conv, Conv3x3) and _is_ours(norm, GhostBatchNorm) and conv.pools(x)

    def forward(self, x: torch.Tensor, bordered: bool = False, border: bool = False) -> torch.Tensor:
        shortcut, pools = x, self._conv_pools(x)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            first, last = number == 0, number == len(self.convs) - 1
            x = conv(x, **_true(bordered=bordered and first, pool=pools and first))
            ends = last and not self.after
            residual = shortcut if self.residual and ends else None
            x = norm(x, residual, **_true(border=border and ends, pooled=pools and first))
            shortcut = x if first else shortcut
        if self.after:
            return F.pad(x + shortcut, (1, 0, 1, 0)) if border else x + shortcut
        return ACTIVATIONS[self.activation](x) if self.residual else x


class Conv2x2(nn.Conv2d):
    """A 2x2 convolution without bias: `[N, C, H, W]` of odd sides to `[N, out, H - 1, W - 1]`, where a 2x2 pool reads
    all; of even sides, with a row of zeros above and a column to the left, to `[N, out, H, W]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above, left = (1 - side % 2 for side in x.shape[2:])
        return super().forward(F.pad(x, (left, 0, above, 0)) if above or left else x)


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    if kernel == 3:
        return Conv3x3(inputs, outputs)
    return Conv2x2(inputs, outputs) if kernel == 2 else nn.Conv2d(inputs, outputs, 1, bias=False)


def _true(**flags: bool) -> dict[str, bool]:
    """Return the flags that are true: layers of another's know none of them."""
    return {name: flag for name, flag in flags.items() if flag}


def _is_ours(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return True if `module` computes by the `forward` of `kind`, not by one of its own."""
    return getattr(module.forward, "__func__", None) is kind.forward
