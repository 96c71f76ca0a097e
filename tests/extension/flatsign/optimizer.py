import torch

from fastcifar.optim import FlatGroup, GroupOptimizer
from flatsign import SignConfig


class FlatSign(GroupOptimizer[SignConfig]):
    """Every step is made of two operations on all weights of a group; rates are read on the device."""

    def step_group(self, group: FlatGroup, rates: torch.Tensor) -> None:
        rate, config = rates[self.count], self.config
        group.weights.mul_(1 - config.shrink * rate / config.lr).sub_(rate * group.grads.sign())
        self.follow(group)
