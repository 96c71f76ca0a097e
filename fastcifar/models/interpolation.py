"""The interpolation of one wide network and an ensemble of narrow ones, after the project behind "Deep Ensembles Work,
But Are They Necessary?" (Abe, Buchanan, Pleiss, Zemel and Cunningham 2022; cellistigs/interp_ensembles).

**The algebra.** Halve the channels of a wide network's activations, x = (x0, x1). A convolution between two of them is
then four narrow ones, W = [[W00, W01], [W10, W11]], with Wio from half i to half o written `block[o][i]`:

    y0 = W00 * x0 + W10 * x1        y1 = W01 * x0 + W11 * x1

Each block belongs to one of four subnetworks, each as deep as the wide network and half as wide. Two go straight, 0
through half 0 and 3 through half 1; two cross over in every convolution, 1 from half 0 and 2 from half 1. In every
layer the four take a block each, so that the wide network is their sum: y_o is the sum of the activations of the two
subnetworks that end there, which the next layer's norm mixes. All weights whose number grows with the square of the
width are shared in this way and in no other. What grows with the width alone is nobody else's: the first convolution,
the norms and the classifier, of which the wide network and each subnetwork have their own, with their own running
statistics. So the ensemble of the four has the wide network's convolutions, each member a quarter of them:

    weights = Q + L + 4 l,   Q: the wide network's blocks, L and l: the other weights of it and of a subnetwork

**Shortcuts.** A crossing subnetwork returns to its half after two convolutions, and so a residual branch of two ends
where its identity shortcut is. A shortcut with one convolution (ResNet-18's, where the shape changes) crosses once: its
result lies in the wrong half, and `ChannelSwap`, which has no weights, brings it to the branch's. (The project's code
took the block that begins in the other half, where nothing is, and swapped then: the crossing shortcuts were lost.)

**The forms.** "summed" computes the narrow convolutions and adds them up: a wide network's work for the wide network,
and a quarter of it for each subnetwork, one more in all. "joined" puts a layer's four weights together and convolves
once, which is as much work and fewer passes over the activations. "zeroed" computes a subnetwork as the wide network
with zeros in place of all weights that are not its own, as the project did: the work of five wide networks. Its
channels in the other half stay 0 from layer to layer, since every activation maps 0 to 0 and a norm, with bias 0, does.
All give the same values and gradients up to rounding.

**The coin.** A number is hashed from the run's seed and the count of steps, on the device, so that one captured step
is enough: the losses are weighted by 1 and 0 or by 0 and 1. Both are computed and differentiated in every step, so that
a coin costs as much as both losses: the work of two wide networks in the summed form, of five in the zeroed one. What
the coin leaves out has a gradient of 0; momentum and weight decay move it all the same, and running statistics, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from fastcifar.models.network import Network
from fastcifar.recipes import NetworkConfig
from fastcifar.recipes.networks.interpolation import InterpolationConfig
from fastcifar.registry import resolve

SUBNETWORKS = ((0, False), (0, True), (1, True), (1, False))
"""Of each subnetwork the half of the channels in which it begins, and whether it crosses over."""


class InterpolationNet(Network[InterpolationConfig]):
    """Images `[N, 3, H, W]`, normalized, to logits `[N, classes]`: those of the wide network or the ensemble's.

    `subnetworks` are four networks of half the width, plain ones that can be taken out, and begin with their usual
    initial values. `wide` is the wide network, whose convolutions between two widths are `BlockConvolution`s. Whitening
    filters, which training does not change, are the same in all, each with its own copy. There is no one `head`.
    """

    config_class = InterpolationConfig
    head = ""
    coin_seed: torch.Tensor
    coin_count: torch.Tensor

    def build(self, config: InterpolationConfig, classes: int) -> None:
        self._network: type[Network[Any]] = resolve(config.of.builder)

        def make(of: NetworkConfig) -> Network[Any]:
            return self._network(of, classes, self.mean, self.std, self.side, self.in_channels)

        self.subnetworks = nn.ModuleList(make(config.narrow()) for _ in SUBNETWORKS)
        self.wide = make(config.wide())
        narrow = dict(self.subnetworks[0].named_modules())
        for name, conv in list(self.wide.named_modules()):
            if isinstance(conv, nn.Conv2d) and conv.in_channels != narrow[name].in_channels:
                self.wide.set_submodule(name, BlockConvolution(self._blocks(name), whole=config.form != "summed"))
        self.zeroed = nn.ModuleList()
        for number, network in enumerate(self._each if config.form == "zeroed" else ()):
            with torch.device("meta"):  # it is never called with weights of its own, and draws no random numbers
                template = make(config.wide())
            if SUBNETWORKS[number][1]:
                for block in template.modules():
                    if isinstance(downsample := getattr(block, "downsample", None), nn.Sequential):
                        downsample.append(ChannelSwap())
            self.zeroed.append(ZeroedSubnetwork(network, template, number))
        has_both = config.loss in ("mix", "coin")
        self.outputs = {"wide": 1, "ensemble": len(SUBNETWORKS)}.get(config.loss, 1 + len(SUBNETWORKS))
        self.reported_outputs = int(has_both and not config.evaluates_ensemble)
        if config.loss == "coin":  # at the end: initial weights are the same as without it
            seed = torch.empty(1, dtype=torch.int64).random_(2**32)  # not randint, which takes no generator here
            self.register_buffer("coin_seed", seed, persistent=False)
            self.register_buffer("coin_count", torch.zeros(1, dtype=torch.int64), persistent=False)

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        return self.ensemble_logits(x) if self.config.evaluates_ensemble else self.wide(x)

    def all_outputs(self, x: torch.Tensor) -> torch.Tensor:
        if self.outputs == 1:
            return self.wide(x)[None]
        subnetworks = self.subnetwork_logits(x)
        return subnetworks if self.config.loss == "ensemble" else torch.cat([self.wide(x)[None], subnetworks])

    def loss_weights(self) -> Sequence[float] | torch.Tensor:
        if self.config.loss == "coin":
            wide = toss(self.coin_seed, self.coin_count, self.config.share).float()
            self.coin_count.add_(1)
            return torch.cat([wide, ((1 - wide) / len(SUBNETWORKS)).expand(len(SUBNETWORKS))])
        if self.config.loss == "mix":
            share = self.config.share
            return (share, *[(1 - share) / len(SUBNETWORKS)] * len(SUBNETWORKS))
        return super().loss_weights()

    @property
    def members(self) -> Sequence[Network]:
        return () if self.config.loss == "wide" else self._each

    @property
    def made_of(self) -> Sequence[Network]:
        return (*self._each, cast("Network[Any]", self.wide))

    def subnetwork_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of each subnetwork, `[4, N, classes]`."""
        return torch.stack([network(x) for network in self.zeroed or self.subnetworks])

    def ensemble_logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of the subnetworks' logits, `[N, classes]`."""
        return self.subnetwork_logits(x).mean(0)

    @property
    def whitening_images(self) -> int:
        return self.wide.whitening_images

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set the filters of all whitenings from the uint8 training images `[N, H, W, 3]`."""
        if self.whitening_images:
            self.wide.fit_whitening(images)
            for network in self._each:
                network.get_submodule("whitening").load_state_dict(self.wide.get_submodule("whitening").state_dict())

    def wide_network(self) -> Network:
        """Return the wide network as a plain one of its own, with copies of all weights."""
        how = self.mean, self.std, self.side, self.in_channels
        network = self._network(self.config.wide(), self._classes, *how)
        state = dict(self.wide.state_dict())
        for name, module in self.wide.named_modules():
            if isinstance(module, BlockConvolution):
                state[f"{name}.weight"] = module.weight.detach()
        network.to(next(self.parameters())).load_state_dict(state)
        return network.train(self.training)

    @property
    def _each(self) -> list[Network[Any]]:
        return cast("list[Network[Any]]", list(self.subnetworks))

    @property
    def _classes(self) -> int:
        return cast(nn.Linear, self.wide.get_submodule(self.wide.head)).out_features

    def _blocks(self, layer: str) -> list[list[nn.Conv2d]]:
        """Return the convolutions of a layer, `[to which half][from which half]`."""
        by_halves = {halves(self._network, number, layer): number for number in range(len(SUBNETWORKS))}
        blocks = [[self.subnetworks[by_halves[i, o]].get_submodule(layer) for i in range(2)] for o in range(2)]
        return cast("list[list[nn.Conv2d]]", blocks)


class BlockConvolution(nn.Module):
    """A convolution of the wide network, `[N, 2C, H, W]` to `[N, 2D, H', W']`, that has no weights but those of four
    narrow convolutions.

    blocks: `blocks[o][i]`, a convolution from half i to half o of the channels. They are no modules of this one.
    whole: compute one convolution with all four weights in one matrix; else each by itself, and their sums.
    """

    def __init__(self, blocks: list[list[nn.Conv2d]], whole: bool = False) -> None:
        super().__init__()
        self._blocks, self.whole = blocks, whole

    @property
    def weight(self) -> torch.Tensor:
        """The wide network's filters, `[2D, 2C, h, w]`."""
        return torch.cat([torch.cat([block.weight for block in row], 1) for row in self._blocks])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.whole:
            first = self._blocks[0][0]
            return F.conv2d(x, self.weight.to(x.dtype), stride=first.stride, padding=first.padding)
        halves = [half.contiguous(memory_format=torch.channels_last) for half in x.chunk(2, 1)]
        return torch.cat([from_0(halves[0]) + from_1(halves[1]) for from_0, from_1 in self._blocks], 1)


class ChannelSwap(nn.Module):
    """The second half of the channels first, `[N, 2C, H, W]` to the same shape; it has no weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([*reversed(x.chunk(2, 1))], 1)


class ZeroedSubnetwork(nn.Module):
    """Subnetwork `number`, computed as the wide network with zeros in place of all weights that are not its own. It has
    no weights but those of `network`, which is no part of it, nor is `template`, a wide network without values."""

    def __init__(self, network: Network, template: Network, number: int) -> None:
        super().__init__()
        self._of, self._number = (network, template), number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        network, template = self._of
        wide = {**dict(template.named_parameters()), **dict(template.named_buffers())}
        placed, slices = {}, {}
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            where = halves(type(template), self._number, name)
            placed[name], slices[name] = place(tensor, wide[name].shape, *where)
        logits = functional_call(template.train(network.training), placed, (x,))
        if network.training:
            with torch.no_grad():
                for name, buffer in network.named_buffers():
                    buffer.copy_(placed[name][slices[name]])
        return logits


def place(tensor: torch.Tensor, shape: torch.Size, enters: int, leaves: int) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Return zeros of a `shape` that has twice the outputs or inputs (dimensions 0 and 1) of `tensor`, or both, with
    `tensor` in one half of each, and where it lies: `leaves` says which half of the outputs, `enters` of the inputs."""
    where = []
    for dim, half in zip(range(tensor.dim()), (leaves, enters), strict=False):
        size = tensor.shape[dim]
        if shape[dim] != size:
            both = (torch.zeros_like(tensor), tensor) if half else (tensor, torch.zeros_like(tensor))
            tensor = torch.cat(both, dim)
        where.append(slice(half * size, (half + 1) * size) if shape[dim] != size else slice(None))
    return tensor, tuple(where)


def halves(network: type[Network], number: int, layer: str) -> tuple[int, int]:
    """Return the halves of the wide `network`'s channels in which subnetwork `number` enters and leaves a layer.

    layer: the name of the layer, or of one of its tensors."""
    start, crosses = SUBNETWORKS[number]
    enters, leaves = network.crossings(layer)
    return start ^ (enters & crosses), start ^ (leaves & crosses)


def toss(seed: torch.Tensor, count: torch.Tensor, share: float) -> torch.Tensor:
    """Return whether the coin number `count` of a seed shows heads, as it does with chance `share`: bool, of the shape
    of both, int64 from 0 to 2**32 - 1. A hash of 32 bits (Wellons 2018, lowbias32)."""
    mask = 2**32 - 1
    x = (count * 0x9E3779B9 + seed) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return (x ^ (x >> 16)) < share * 2**32
