"""The section `network` of a recipe: the network, its shape and its tricks, one kind a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from fastcifar.errors import UserError
from fastcifar.recipes.declare import Kind, register
from fastcifar.registry import Registry


@dataclass(frozen=True)
class NetworkConfig(Kind):
    """The configuration of a network. A subclass is a frozen dataclass of settings; see `network`."""

    section: ClassVar[str] = "network"
    builder: ClassVar[str | Callable[..., Any]]
    """Maker of the module; see `network`."""
    sides: ClassVar[tuple[int, ...]] = ()
    """Sides in pixels of the images that it takes; none: any from `least_side`."""
    one_side: ClassVar[bool] = False
    """True if it is built for images of one side, and takes no smaller crops of them."""
    usual_side: ClassVar[int] = 0
    """Side in pixels to which images that are too small for it are brought where no other is asked for; 0: they are
    refused."""
    has_filters: ClassVar[bool] = True
    """True if it has convolutions, which Muon needs."""
    is_joint: ClassVar[bool] = False
    """True if it is several networks itself, on a loss of their own: no member of a recipe's ensemble."""
    formerly: ClassVar[str] = ""
    """Name of its section in recipe files from before there were kinds."""

    @property
    def batch_multiple(self) -> int:
        """Number of images that it normalizes together, which must divide the batch; 1: any batch will do."""
        return 1

    @property
    def least_side(self) -> int:
        """Side in pixels of the smallest images that it takes."""
        return 1

    def side_for(self, side: int) -> int:
        """Return the side in pixels to which images of `side` are brought where no other is asked for."""
        return self.usual_side if self.usual_side and side < self.least_side else side

    def refuse_side(self, side: int) -> None:
        """Raise UserError for images of a side in pixels that it does not take."""
        if side in self.sides or (not self.sides and side >= self.least_side):
            return
        allowed = " or ".join(map(str, self.sides)) or f"{self.least_side} or more"
        raise UserError(
            f"network is {self.kind}, and images have {side} pixels a side; allowed: {allowed} for {self.kind}"
        )


NETWORKS: Registry[type[NetworkConfig]] = Registry("network", __name__)
NetworkConfig.kinds = NETWORKS

Config = TypeVar("Config", bound=NetworkConfig)


def network(kind: str, builder: str | Callable[..., Any]) -> Callable[[type[Config]], type[Config]]:
    """Register the decorated configuration, a frozen dataclass, as the network `kind`.

        @fastcifar.network("tiny", "my_package.tiny:TinyNet")
        @dataclass(frozen=True)
        class TinyConfig(fastcifar.NetworkConfig):
            width: int = fastcifar.setting(8, at_least=1)

    builder: a class of `fastcifar.Network`, or a function or class that makes any `nn.Module` from the configuration
        and the number of classes; or its place, "package.module:name", imported when a network is built.

    Raises UserError if the name is taken.
    """
    return register(NetworkConfig, kind, builder=builder)
