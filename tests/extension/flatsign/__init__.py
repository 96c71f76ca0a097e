"""An optimizer over flat buffers in two files."""

from dataclasses import dataclass

import fastcifar


@fastcifar.optimizer("sign", "flatsign.optimizer:FlatSign")
@dataclass(frozen=True)
class SignConfig(fastcifar.OptimizerConfig):
    """Steps of one length for every weight (Bernstein 2018, signSGD)."""

    lr: float = fastcifar.setting(0.003, above=0)
    """Length of a step at the peak."""
    shrink: float = fastcifar.trick(0.01, off=0.0, at_least=0, below=1, source="Loshchilov 2017")
    """Share of a weight that a step at the peak removes."""
