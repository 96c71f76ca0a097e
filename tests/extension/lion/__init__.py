"""A class of torch.optim.Optimizer's in two files."""

from dataclasses import dataclass

import fastcifar


@fastcifar.optimizer("lion", "lion.optimizer:Lion")
@dataclass(frozen=True)
class LionConfig(fastcifar.OptimizerConfig):
    """Lion (Chen 2023); the fields are the class's arguments."""

    lr: float = fastcifar.setting(0.002, above=0)
    """Length of a step at the peak."""
    betas: tuple[float, float] = fastcifar.setting((0.9, 0.99), at_least=0, below=1)
    """Shares of the momentum in a step's direction, and that a step leaves of it."""
