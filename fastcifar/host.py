"""The program around this library is left as it is: torch's settings and random numbers of the library's own.

Settings are those of the calling thread; torch's default type alone is the whole process's. So are the generators that
code of the user's own draws from: trainings with parts of theirs take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
        self._enter(value)
        try:
            yield
        finally:
            self._leave(value)

    @contextmanager
    def as_before(self, value: Value) -> Iterator[None]:
        """Use what it was within a `with` block inside that of `set_to(value)`, unless other threads are in theirs."""
        self._leave(value)
        try:
            yield
        finally:
            self._enter(value)

    def _enter(self, value: Value) -> None:
        with self._lock:
            if not self._inside:
                self._before = self._read()
                if self._before != value:
                    self._write(value)
            self._inside += 1

    def _leave(self, value: Value) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._before != value:
                self._write(self._before)


_default_dtype = ProcessSetting(torch.get_default_dtype, torch.set_default_dtype)


TURN = threading.RLock()
"""Held by the thread that has torch's global generators to itself: those that swap their states take turns."""


@contextmanager
def building(seed: int, part: Any) -> Iterator[None]:
    """Build modules within a `with` block: on the CPU, in float32, with random numbers of `seed`, the same as after
    `torch.manual_seed(seed)`.

    part: the class or function that builds. One of the user's own finds the numbers in torch's global generator of the
        CPU, which is as before after the block, and may set it; one of the library's own gets them without touching it.
    """
    with ExitStack() as stack:
        stack.enter_context(TORCH.applied())
        stack.enter_context(_default_dtype.set_to(torch.float32))
        if is_ours(part):
            stack.enter_context(OwnNumbers(torch.Generator().manual_seed(seed)))
        else:
            stack.enter_context(TURN)
            stack.callback(torch.set_rng_state, torch.get_rng_state())
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed those of all devices
        yield


def is_ours(part: Any) -> bool:
    """Return True for a class or function of this library or of torch."""
    return (getattr(part, "__module__", None) or "").partition(".")[0] in ("fastcifar", "torch")


class DispatchMode(TorchDispatchMode):
    """A mode that sees operators in code that is not compiled. Torch's own would import its compiler at the first one,
    which takes 2 to 6 seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class OwnNumbers(DispatchMode):
    """Random numbers out of `generator` within a `with` block and in this thread, for operations that take a generator
    and are given none. For code of the library's own: torch.compile passes over what it meets in such a mode, and
    `torch.manual_seed` says nothing there."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            func = _with_generator(func)
        takes = any(argument.name == "generator" for argument in func._schema.arguments)
        return func(*args, **({"generator": self._generator, **kwargs} if takes else kwargs))


def _with_generator(func: Any) -> Any:
    """Return the overload of an operator that takes a generator too: "low_generator_dtype" for "low_dtype"."""

    def words(name: str) -> list[str]:
        return [word for word in name.split("_") if word not in ("generator", "default")]

    alike = [name for name in func.overloadpacket.overloads() if words(name) == words(func._overloadname)]
    return getattr(func.overloadpacket, max(alike, key=lambda name: "generator" in name))
