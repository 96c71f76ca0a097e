"""DavidNet, the 9-layer ResNet of "How to train your ResNet" (Page 2018-2019), as in the series' last post."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastcifar.models.blocks import ConvBN, ConvResBlock, global_pool
from fastcifar.models.network import Network
from fastcifar.models.units import Units
from fastcifar.models.whitening import PatchWhitening
from fastcifar.recipes.networks.davidnet import DavidNetConfig


class DavidNet(Network[DavidNetConfig]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`.

    Stem: frozen 3x3 patch whitening to 27 channels, 1x1 convolution to 64, ghost batch norm, CELU. Three layers of 128,
    256 and 512 channels: 3x3 convolution, 2x2 max-pool, ghost batch norm, CELU; the first and third with a residual
    branch of two more such convolutions without pool. Global max-pool, linear without bias, times 1/16. H and W are at
    least 8. Every trick is a field of `DavidNetConfig`. Initial values are torch's own, whatever the layer.
    """

    config_class = DavidNetConfig
    head = "classifier"

    def build(self, config: DavidNetConfig, classes: int) -> None:
        stem = config.widths[0]
        settings: dict[str, Any] = {
            "pooling": config.pool,
            "pool_after": config.pool_after,
            "norm": config.norm and config.norm_kind,
            "ghost_batch": config.ghost_batch,
            "freeze_scale": config.freeze_scale,
            "momentum": config.norm_momentum,
            "eps": config.norm_eps,
            "activation": config.activation,
            "celu_alpha": config.celu_alpha,
        }
        if config.whitening:
            self.whitening: PatchWhitening | None = PatchWhitening(self.in_channels, 3, config.whitening_eps)
            self.stem = ConvBN(9 * self.in_channels, stem, kernel_size=1, **settings)
        else:
            self.whitening = None
            self.stem = ConvBN(self.in_channels, stem, **settings)
        self.layers = nn.Sequential()
        for number, (inputs, outputs) in enumerate(itertools.pairwise(config.widths), start=1):
            branches = {"residual": number in config.residual, "extra": number in config.extra}
            self.layers.append(ConvResBlock(inputs, outputs, **branches, **settings))
        self.classifier = nn.Linear(config.widths[-1], classes, bias=False)
        self.logit_scale = config.logit_scale

    @property
    def whitening_images(self) -> int:
        return self.config.whitening_images if self.whitening is not None else 0

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set the whitening filters, if there are any, from the first `config.whitening_images` of the uint8 training
        images `[N, H, W, 3]`."""
        if self.whitening is not None:
            self.whitening.fit(images[: self.config.whitening_images], self.mean, self.std)

    @classmethod
    def crossings(cls, layer: str) -> tuple[int, int]:
        match layer.split("."):
            case ["layers", number, "block", *_]:
                before = int(number)
            case ["layers", number, "residual", which, *_]:
                before = int(number) + 1 + int(which)
            case ["layers", number, "extra", *_]:  # in the half that its input is in: later layers need not know of it
                half = (int(number) + 1) % 2
                return half, half
            case ["classifier", *_]:
                return 1, 1  # after three layers
            case _:
                return 0, 0
        return before % 2, (before + 1) % 2

    def units(self) -> Sequence[Units]:
        """Return those of each `ConvBN` but the two around a residual sum, whose outputs are summed."""
        path, summed = ["stem"], set()
        for number in range(1, 4):
            layer = f"layers.{number - 1}"
            path.append(f"{layer}.block")
            if number in self.config.residual:
                summed |= {f"{layer}.block", f"{layer}.residual.1"}
                path += [f"{layer}.residual.0", f"{layer}.residual.1"]
            path += [f"{layer}.extra"] if number in self.config.extra else []
        readers = [*(f"{each}.conv" for each in path[1:]), self.head]
        pairs = zip(path, readers, strict=True)
        return [Units(f"{each}.conv", reader, each, f"{each}.norm") for each, reader in pairs if each not in summed]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.stem(x, whitening=self.whitening))
        return global_pool(x, self.config.final_pool)
