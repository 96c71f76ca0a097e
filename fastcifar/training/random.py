"""Torch's random numbers in a training, apart from those of the process around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from fastcifar.data.plan import NOT_PLANNED, derived_seed
from fastcifar.host import TURN, is_ours
from fastcifar.models import Network, OwnNetwork
from fastcifar.recipes import Recipe
from fastcifar.registry import resolve


class RandomNumbers:
    """Torch's global generators, on the CPU and on `device`, for dropout, and for networks, losses and
    transforms of the user's own.
    Within a `with` block they go on from where the last block left them, whatever the process drew between; after it
    they are as before. Blocks of several threads take turns; any other thread that draws meanwhile draws from these.

    drawn: False: nothing is drawn, and the generators stay as they are.
    """

    def __init__(self, device: torch.device, *, drawn: bool = True) -> None:
        self._device, self._drawn = device, drawn
        self._own: dict[str, torch.Tensor] = {}
        self._others: dict[str, torch.Tensor] | None = None
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Start again from `seed`."""
        derived = derived_seed(seed, NOT_PLANNED)
        devices = ["cpu", self._device] if self._device.type == "cuda" else ["cpu"]
        states = [torch.Generator(device).manual_seed(derived).get_state() for device in devices]
        self.load_state_dict(dict(zip(("cpu", "cuda"), states, strict=False)))

    def __enter__(self) -> None:
        if self._drawn:
            TURN.acquire()
            self._others = _global(self._device)
            _set_global(self._own, self._device)

    def __exit__(self, *exc: object) -> None:
        if self._drawn:
            self._own = _global(self._device)
            _set_global(self._others or {}, self._device)
            self._others = None
            TURN.release()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Use the process's own random numbers within a `with` block inside the training's."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the generators' states."""
        return self._own if self._others is None else _global(self._device)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state_dict`. A generator that it lacks, as CUDA's in one of a CPU, goes on from its seed."""
        self._own = {**self._own, **{name: tensor.clone() for name, tensor in state.items()}}
        if self._others is not None:
            _set_global(self._own, self._device)


def random_numbers_of(network: Network, recipe: Recipe, device: torch.device, own: bool) -> RandomNumbers:
    """Return the random numbers of the trainings of `network`; `own`: a part of theirs is of the user's own. Those of
    the library's own parts are all planned, but for dropout's."""
    networks = [type(module) for module in network.modules() if isinstance(module, Network)]
    parts = [*networks, resolve(recipe.optimizer.builder)]
    parts += [resolve(type(each).function) for each in recipe.transforms]
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())
    return RandomNumbers(device, drawn=own or drops or OwnNetwork in networks or not all(map(is_ours, parts)))


def _global(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_global(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
