"""A network of the user's own: any module that takes images and gives logits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from fastcifar.errors import UserError, is_out_of_memory
from fastcifar.models.modes import in_evaluation
from fastcifar.models.network import WHITENING_IMAGES, Network, memory_format
from fastcifar.models.units import Units, refuse_misfit
from fastcifar.models.whitening import PatchWhitening

_taken: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules in use by a network: a second network would move their parameters."""


class OwnNetwork(Network[nn.Module]):
    """Calls the module `config` with images `[N, 3, H, W]` for logits `[N, classes]`.

    Images come in the memory format of its filters (see `memory_format`), so that `x.view(len(x), -1)` works in a plain
    network. Nothing in it is frozen later, its logits are not scaled, and its head is unknown. Its hidden units are
    known where its class has a method `units()`, as `Network.units`, with names of modules in it.
    """

    head = ""
    memory_format = torch.preserve_format

    def build(self, config: nn.Module, classes: int) -> None:
        self._image_format = memory_format(config)

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        return self.config(x.contiguous(memory_format=self._image_format))

    def units(self) -> Sequence[Units]:
        """Return those that the module says it has. Raises UserError where it says anything but `Units` that can be
        found in it."""
        if not callable(getattr(type(self.config), "units", None)):
            return ()
        said = self.config.units()  # pyright: ignore[reportCallIssue]
        found = list(said) if isinstance(said, Iterable) else [said]
        for each in found:
            refuse_misfit(each, self.config)
        return found

    def fit_whitening(self, images: torch.Tensor) -> None:
        """Set the filters of each `PatchWhitening` that takes images."""
        for module in self._whitenings():
            module.fit(images[:WHITENING_IMAGES], self.mean, self.std)

    @property
    def whitening_images(self) -> int:
        return WHITENING_IMAGES if self._whitenings() else 0

    def _whitenings(self) -> list[PatchWhitening]:
        return [each for each in self.config.modules() if isinstance(each, PatchWhitening) and each.in_channels == 3]

    @property
    def module(self) -> nn.Module:
        return self.config


def own_network(
    own: Callable[[int], nn.Module], classes: int, mean: Sequence[float], std: Sequence[float], sides: Sequence[int]
) -> Network:
    """Return the network around the module that `own(classes)` gives, on the CPU in float32; a `Network`, or a class of
    them, is taken as it is. Parts in evaluation mode of a module in training mode are frozen, and stay in it.

    Raises UserError for no module, for one that was taken before, where nothing in it trains, and where it gives
    anything but `[N, classes]` for images `[N, 3, side, side]` of one of the `sides`.
    """
    if isinstance(own, nn.Module) or not callable(own):
        raise UserError(
            f"the model is {_described(own)}; allowed: a class or function of the number of classes that gives a module"
        )
    module = own(None, classes) if isinstance(own, type) and issubclass(own, Network) else own(classes)
    if not isinstance(module, nn.Module):
        raise UserError(f"the model gives {_described(module)}; allowed: a torch.nn.Module")
    if module in _taken:
        raise UserError("the model gives one module a second time; allowed: a new one, such as a copy, at each call")
    module.to("cpu", torch.float32)
    for side in sides:
        try:
            with torch.random.fork_rng(devices=[]), in_evaluation(module), torch.no_grad():
                logits = module(torch.zeros(2, 3, side, side, dtype=torch.float32, device="cpu"))
        except (RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"the model does not take images [2, 3, {side}, {side}]: {reason}") from error
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else _described(logits)
        if shape != [2, classes]:
            raise UserError(
                f"the model gives {shape} for images [2, 3, {side}, {side}]; allowed: logits [2, {classes}]"
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(f"the model gives {_described(module)} without a parameter that trains; allowed: one or more")
    _taken.add(module)
    frozen = [part for part in module.modules() if not part.training] if module.training else []
    network = module if isinstance(module, Network) else OwnNetwork(module)
    network.mean, network.std = tuple(mean), tuple(std)
    network.train()
    for part in frozen:
        part.eval()
    return network


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"
