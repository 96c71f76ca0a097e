"""`Units`: which hidden units of a network can be looked at, and replaced, one by one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Units:
    """Hidden units, channels or features, that one layer makes and one other layer alone reads, without a residual sum
    between. Names are those of modules of the network."""

    maker: str
    """The convolution or linear layer whose outputs they are."""
    reader: str
    """The layer whose inputs they are. A linear layer behind a flattened convolution has several inputs for each, next
    to each other."""
    seen: str
    """The module whose output, `[N, U]` or `[N, U, H, W]`, holds them, up to `activation`."""
    norm: str = ""
    """The norm between, with a scale, a bias or running statistics for each unit; none."""
    activation: str = "none"
    """What the network itself applies to that output, a function of `torch.nn.functional`."""
