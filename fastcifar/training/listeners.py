"""Listeners to a training, such as a progress bar, a tracker or code of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fastcifar.errors import UserError
from fastcifar.host import TorchSettings
from fastcifar.phases import Phases
from fastcifar.record import EpochRow, RunRecord
from fastcifar.training.device import no_cudnn_search

if TYPE_CHECKING:
    from fastcifar.training.state import TrainingState
    from fastcifar.training.train import Trainer


class Listener:
    """A listener to a training. Override methods, or give functions: `Listener(on_epoch=print)`.

    None of them is called while the stopwatch runs. With `on_step` or `on_epoch` the host waits for a GPU at the end of
    each epoch; without, the whole training is queued.
    """

    def __init__(
        self,
        *,
        on_start: Callable[[Trainer], object] | None = None,
        on_step: Callable[[int, int], object] | None = None,
        on_epoch: Callable[[EpochRow], object] | None = None,
        on_end: Callable[[RunRecord], object] | None = None,
    ) -> None:
        given = {"on_start": on_start, "on_step": on_step, "on_epoch": on_epoch, "on_end": on_end}
        for name, call in given.items():
            if call is not None and not callable(call):
                raise UserError(f"{name} is of type {type(call).__name__}; allowed: a function")
        self.__dict__.update({name: call for name, call in given.items() if call is not None})

    def on_start(self, trainer: Trainer) -> object:
        """Called before the first step. From here on `trainer.state` changes; `trainer.recipe`, `trainer.dataset` and
        `trainer.total_steps` do not."""

    def on_step(self, step: int, total_steps: int) -> object:
        """Called after each step on a CPU, on CUDA after the last of each epoch; `step` counts from 1."""

    def on_epoch(self, row: EpochRow) -> object:
        """Called after each epoch, and after its evaluation if one is due."""

    def on_end(self, record: RunRecord) -> object:
        """Called after the final evaluation; not where the training failed."""


def checked_listeners(listeners: Iterable[Listener]) -> list[Listener]:
    """Return `listeners` as a list. Raises UserError for anything but an iterable of `Listener`."""
    if not isinstance(listeners, Iterable):
        raise UserError(f"listeners is of type {type(listeners).__name__}; allowed: a list of them")
    for listener in (found := list(listeners)):
        if not isinstance(listener, Listener):
            what = type(listener).__name__
            raise UserError(f"listeners has a {what}; allowed: a Listener, as in Listener(on_epoch=print)")
    return found


class Audience:
    """The listeners of one training, called in their order, with the random numbers of the process and the
    settings of torch where this was made: without `cudnn_search`, if the training does search. Raises UserError for
    anything but a `Listener`."""

    def __init__(
        self, listeners: Iterable[Listener], state: TrainingState, phases: Phases, cudnn_search: bool = False
    ) -> None:
        self._listeners, self._state, self._phases = checked_listeners(listeners), state, phases
        self._settings, self._searches = TorchSettings.here(), cudnn_search
        self.hears_steps, self.hears_epochs = self._hears("on_step"), self._hears("on_epoch")

    def tell(self, name: str, *arguments: object) -> None:
        """Call the method `name` of every listener."""
        if self._listeners:
            with (
                self._phases("listeners"),
                self._state.random.outside(),
                self._settings.applied(),
                no_cudnn_search(self._searches),
            ):
                for listener in self._listeners:
                    getattr(listener, name)(*arguments)

    def tell_row(self) -> None:
        """Call `on_epoch` with the last row, unless that was done, be it before the training went on from its state."""
        rows = self._state.history.rows
        if len(rows) > self._state.told:
            self._state.told = len(rows)
            self.tell("on_epoch", rows[-1])

    def _hears(self, name: str) -> bool:
        unchanged = getattr(Listener, name)
        return any(getattr(getattr(one, name), "__func__", None) is not unchanged for one in self._listeners)
