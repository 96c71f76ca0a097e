"""Torch's random numbers in a training, apart from those of the process around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fastcifar.data.plan import NOT_PLANNED, derived_seed
from fastcifar.host import OwnNumbers
from fastcifar.models import Network, OwnNetwork
from fastcifar.recipes import Recipe
from fastcifar.registry import resolve


class RandomNumbers:
    """The random numbers of dropout, and of networks and transforms of the user's own, within a `with` block: they go
    on from where the last block left them, whatever the process drew between. The process's own stay as they are.

    device: of the training.
    drawn: some are drawn at all. Every operation on a CPU is then looked at, which takes some microseconds.
    swapped: torch's global generators, the CPU's and that of `device`, hold them within the block, since captured and
        compiled steps read no others. A thread that draws from them meanwhile draws these.
    """

    def __init__(self, device: torch.device, *, drawn: bool = True, swapped: bool = False) -> None:
        self._device, self._swapped = device, swapped or device.type == "cuda"
        self._generator = torch.Generator()
        self._drawing = OwnNumbers(self._generator) if drawn and not self._swapped else None
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
        if self._drawing:
            self._drawing.__enter__()
        if self._swapped:
            self._others = _global(self._device)
            _set_global(self._own, self._device)

    def __exit__(self, *exc: object) -> None:
        if self._drawing:
            self._drawing.__exit__(None, None, None)
        if self._swapped:
            self._own = _global(self._device)
            _set_global(self._others or {}, self._device)
            self._others = None

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
        if not self._swapped:
            return {"cpu": self._generator.get_state()}
        return self._own if self._others is None else _global(self._device)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state_dict`."""
        self._own = {name: tensor.clone() for name, tensor in state.items()}
        if not self._swapped and "cpu" in state:
            self._generator.set_state(state["cpu"])
        elif self._others is not None:
            _set_global(self._own, self._device)


def random_numbers_of(network: Network, recipe: Recipe, device: torch.device, own: bool) -> RandomNumbers:
    """Return the random numbers of the trainings of `network`; `own`: a part of theirs is of the user's own."""
    parts = [type(network), resolve(recipe.optimizer.builder)]
    parts += [resolve(type(each).function) for each in recipe.transforms]
    ours = all(part.__module__.partition(".")[0] in ("fastcifar", "torch") for part in parts)
    drawn = own or not ours or isinstance(network, OwnNetwork)  # the library's own are all planned
    compiled = recipe.compile == "step" or any(type(each).__name__ == "OptimizedModule" for each in network.modules())
    return RandomNumbers(device, drawn=drawn, swapped=drawn and compiled)


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
