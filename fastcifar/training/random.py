"""Torch's random numbers in a training, apart from those of the process around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fastcifar.data.plan import NOT_PLANNED, derived_seed


class RandomNumbers:
    """Torch's global generators, on the CPU and on `device`, for dropout and for networks and transforms of the user's
    own. Within a `with` block they go on from where the last block left them, whatever the process drew between; after
    it they are as before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
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
        self._others = self._read()
        self._write(self._own)

    def __exit__(self, *exc: object) -> None:
        self._own = self._read()
        self._write(self._others or {})
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
        return self._own if self._others is None else self._read()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state_dict`."""
        self._own = {name: tensor.clone() for name, tensor in state.items()}
        if self._others is not None:
            self._write(self._own)

    def _read(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states

    def _write(self, states: Mapping[str, torch.Tensor]) -> None:
        if "cpu" in states:
            torch.set_rng_state(states["cpu"])
        if "cuda" in states and self._device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self._device)
