"""A network in two files: this one is read for every command, and `module` where a network is built."""

from dataclasses import dataclass

import fastcifar


@fastcifar.network("tiny", "tinynet.module:TinyNet")
@dataclass(frozen=True)
class TinyConfig(fastcifar.NetworkConfig):
    """One convolution and a classifier."""

    width: int = fastcifar.setting(8, at_least=1, unit="channels")
    """Channels of the convolution."""
    squared: bool = fastcifar.trick(True, off=False, source="So 2021")
    """Square what ReLU leaves."""
