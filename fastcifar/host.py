"""The program around this library is left as it is: torch's settings and random numbers of the library's own.

Settings and random numbers are those of the calling thread; torch's default type alone is the whole process's.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcifar.errors import UserError

_AUTOCAST = ("cpu", "cuda")
_CPU = torch.device("cpu")
Value = TypeVar("Value")


@dataclass(frozen=True)
class TorchSettings:
    """Settings of torch in this thread; by default those that it starts with."""

    grad: bool = True
    inference: bool = False
    autocast: tuple[bool, ...] = (False,) * len(_AUTOCAST)
    """Whether autocast is on, on a CPU and on CUDA."""
    device: torch.device = _CPU
    """The device of new tensors."""

    @classmethod
    def here(cls) -> TorchSettings:
        """Return the settings at this place."""
        autocast = tuple(map(torch.is_autocast_enabled, _AUTOCAST))
        return cls(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, torch.get_default_device())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use these settings in this thread within a `with` block, or in a function that this decorates."""
        before = self.here()
        with ExitStack() as stack:
            if before.inference != self.inference:
                stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for kind, was_on, on in zip(_AUTOCAST, before.autocast, self.autocast, strict=True):
                if was_on != on:
                    torch.set_autocast_enabled(kind, on)
                    stack.callback(torch.set_autocast_enabled, kind, was_on)
            if before.device != self.device:
                stack.enter_context(self.device)
            yield


TORCH = TorchSettings()
"""The settings that torch starts with."""


class ProcessSetting(Generic[Value]):
    """A setting of the whole process. Several threads may change it to the same value at once: the first keeps what it
    was, the last restores it."""

    def __init__(self, read: Callable[[], Value], write: Callable[[Value], object]) -> None:
        self._read, self._write = read, write
        self._lock, self._inside = threading.Lock(), 0

    @contextmanager
    def set_to(self, value: Value) -> Iterator[None]:
        """Use `value` within a `with` block."""
        with self._lock:
            if not self._inside:
                self._before = self._read()
                if self._before != value:
                    self._write(value)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside and self._before != value:
                    self._write(self._before)


_default_dtype = ProcessSetting(torch.get_default_dtype, torch.set_default_dtype)


@contextmanager
def building(seed: int = 0) -> Iterator[None]:
    """Build modules within a `with` block: on the CPU, in float32, with random numbers of `seed`, the same as after
    `torch.manual_seed(seed)`."""
    with TORCH.applied(), _default_dtype.set_to(torch.float32), OwnNumbers(torch.Generator().manual_seed(seed)):
        yield


class OwnNumbers(TorchDispatchMode):
    """Random numbers out of `generator`, a CPU's, within a `with` block and in this thread: for operations that are
    given no generator. Those on other devices get one of its seed. Torch's own generators stay as they are.

    Raises UserError where `torch.utils.checkpoint` computes random numbers again, which it cannot repeat here.
    """

    _swapping = threading.Lock()

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generators = {_CPU: generator}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draws = _draws(func)
        if draws is None or any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        _refuse_recomputation()
        device = _device_of(args, kwargs)
        if device.type not in ("cpu", "cuda"):
            return func(*args, **kwargs)
        generator = self._generators.get(device)
        if generator is None:
            generator = torch.Generator(device).manual_seed(self._generators[_CPU].initial_seed())
            self._generators[device] = generator
        if draws.place is not None:
            if draws.place < len(args):
                args = (*args[: draws.place], generator, *args[draws.place + 1 :])
            else:
                kwargs = {**kwargs, "generator": generator}
            return draws.operation(*args, **kwargs)
        with self:
            made = func.decompose(*args, **kwargs)
        return self._swapped(func, args, kwargs) if made is NotImplemented else made

    def _swapped(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation that takes no generator, with the process's in the state of our own."""
        generator = self._generators[_CPU]
        with self._swapping:
            before = torch.get_rng_state()
            torch.set_rng_state(generator.get_state())
            try:
                return func(*args, **kwargs)
            finally:
                generator.set_state(torch.get_rng_state())
                torch.set_rng_state(before)


@dataclass(frozen=True)
class _Draws:
    """The random operation to call in place of another."""

    operation: Any
    place: int | None
    """The place of its generator among its arguments; None: it takes none."""


@functools.cache
def _draws(func: Any) -> _Draws | None:
    """Return how to call a random operation with a generator; None for one that is not random."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    arguments = [(each.name, str(each.type)) for each in func._schema.arguments]
    packet = func.overloadpacket
    for operation in (func, *(getattr(packet, name) for name in packet.overloads())):
        theirs = operation._schema.arguments
        others = [(each.name, str(each.type)) for each in theirs if each.name != "generator"]
        if len(others) < len(theirs) and (operation is func or others == arguments):
            place = next(place for place, each in enumerate(theirs) if each.name == "generator")
            return _Draws(operation, len(theirs) if theirs[place].kwarg_only else place)
    return _Draws(func, None)


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Return the device that a random operation draws on."""
    device = kwargs.get("device")
    if device is None:
        device = next((value.device for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), _CPU)
    device = torch.device(device)
    whole = device.type != "cuda" or device.index is not None
    return device if whole else torch.device("cuda", torch.cuda.current_device())


def _refuse_recomputation() -> None:
    """Raise UserError in a backward pass of `torch.utils.checkpoint`."""
    if torch._C._current_graph_task_id() == -1:
        return
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            raise UserError(
                "torch.utils.checkpoint computes random numbers again, such as dropout's; allowed on a CPU: without it"
            )
        frame = frame.f_back
