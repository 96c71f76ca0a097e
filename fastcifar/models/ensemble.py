"""`Members`: several networks of one kind, trained at once on one loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from fastcifar.errors import UserError
from fastcifar.host import building
from fastcifar.models.network import Network
from fastcifar.recipes.ensemble import EnsembleConfig


class Members(Network[EnsembleConfig]):
    """Images `[N, 3, H, W]`, normalized, to the mean `[N, classes]` of the logits of `networks`.

    networks: of one kind and shape; with joint "shared" one network as many times, whose weights are then shared.
    config: the section `ensemble` of a recipe.

    The loss of a training reads the members' logits, with joint "logits" their mean; `all_outputs` takes the members'
    batches one after another where each has an order of its own. Each member computes as it would alone, in calls of
    its own: nothing of one enters another but by the loss.
    """

    head = ""
    memory_format = torch.preserve_format

    def __init__(self, networks: Sequence[Network], config: EnsembleConfig) -> None:
        nn.Module.__init__(self)
        first = networks[0]
        self.config, self.mean, self.std = config, first.mean, first.std
        self.side, self.in_channels = first.side, first.in_channels
        self.networks = nn.ModuleList(networks)
        self.logit_scale = first.logit_scale
        self.outputs = 1 if config.joint == "logits" else len(networks)
        self.frozen_from = {
            f"networks.{place}.{self._prefix(network)}{name}": epoch
            for place, network in enumerate(networks[:1] if config.joint == "shared" else networks)
            for name, epoch in network.frozen_from.items()
        }

    @staticmethod
    def _prefix(network: Network) -> str:
        """Return what the names of a member's parameters begin with in the member itself."""
        inside = (name for name, module in network.named_modules() if module is network.module)
        return f"{name}." if (name := next(inside, "")) else ""

    def build(self, config: EnsembleConfig, classes: int) -> None:
        """Make nothing: the networks are given."""

    @property
    def members(self) -> Sequence[Network]:
        """The networks; none where they share their weights, as each is the same."""
        return () if self.config.joint == "shared" else self._networks

    @property
    def _networks(self) -> list[Network]:
        return [cast(Network, network) for network in self.networks]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return those of all members beside one another."""
        return torch.cat([network.features(x) for network in self._networks], 1)

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([network(x, scaled=False) for network in self._networks]).mean(0)

    def all_outputs(self, x: torch.Tensor) -> torch.Tensor:
        if self.outputs == 1:
            return super().all_outputs(x)
        networks = self._networks
        parts = x.chunk(len(networks)) if self.config.orders > 1 else [x] * len(networks)
        return torch.stack([network(part, scaled=False) for network, part in zip(networks, parts, strict=True)])

    def loss_weights(self) -> Sequence[float]:
        return (1.0,) * self.outputs if self.config.joint == "sum" else (1 / self.outputs,) * self.outputs

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Fit that of each member, on the same images."""
        for network in distinct(self):
            network.fit_whitening(images)

    @property
    def whitening_images(self) -> int:
        return self._networks[0].whitening_images


def distinct(network: Network) -> list[Network]:
    """Return the networks that a pass each brings over the same images: of members that share their weights one."""
    parts = [part.networks if isinstance(part, Members) else [part] for part in network.made_of]
    return list(dict.fromkeys(cast(Network, each) for part in parts for each in part))


def build_members(config: EnsembleConfig, seed: int, part: object, build: Callable[[], Network]) -> Members:
    """Return the network of the members that `config` asks for, each as a run of its own seed would begin with it.

    seed: of the run.
    part: the class or function that builds; see `building`.
    build: builds one network.

    Raises UserError for a network that has several outputs itself.
    """
    networks = []
    for own in config.seeds(seed)[: 1 if config.joint == "shared" else None]:
        with building(own, part):
            networks.append(build())
    if networks[0].outputs > 1:
        what = f"{type(networks[0]).__name__} is trained on several outputs already"
        raise UserError(f"ensemble.members is {config.members}, and {what}; allowed: 1 for it")
    return Members(networks * config.members if config.joint == "shared" else networks, config)
