"""What SIGINT, SIGTERM and SIGHUP do to a command: they end it, a training at the end of a step. Standard library
only."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcifar.training import EpochRow, Trainer

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Those that this system has."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the command. The command line exits with 128 and the signal's `number`."""

    def __init__(self, message: str = "interrupted", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Signals:
    """The first signal that came, and whether it ends the command at once or is waited with."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that came; None: none did."""
        self.is_held = False
        """True while the first signal is only noted. A second one ends the command at once, unless `is_patient`."""
        self.is_patient = False
        """True where the same signal may come twice, to a group and from the parent: then all are noted."""

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take the signals while the block runs. Those that are ignored (`nohup`) stay so, as do a program's own."""
        self.__init__()
        before = {}
        for number in NUMBERS:
            with contextlib.suppress(ValueError):  # not the main thread, which alone hears of signals
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    before[number] = signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_first = self.number is None
        self.number = self.number or number
        if not (self.is_held and (is_first or self.is_patient)):
            raise self.interrupted()

    def interrupted(self, where: str = "") -> Interrupted:
        """Return the error for the first signal, which came `where` the command was."""
        number = self.number or signal.SIGINT
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        return Interrupted(f"interrupted{by}{where}", number)


SIGNALS = Signals()
"""Those of this process."""


class Stop:
    """A listener's methods that end a training at the end of a step after a signal, once its state is kept.

    The first signal is held from the end of the first step on a CPU, where steps are heard of; on CUDA from before it,
    when all is compiled. Before that nothing is lost by leaving at once.

    keep: writes the state. It may raise UserError, which is said.
    """

    def __init__(self, signals: Signals, keep: Callable[[], object]) -> None:
        self._signals, self._keep = signals, keep
        self._step, self._total, self._ends = 0, 0, set[int]()

    def begin(self, trainer: Trainer) -> None:
        self._step, self._total = trainer.state.step, trainer.total_steps
        self._ends = {epoch.end for epoch in trainer.timeline.epochs}
        self._signals.is_held = trainer.device.type != "cpu"

    def step(self, step: int, total_steps: int) -> None:
        self._signals.is_held, self._step = True, step
        if step not in self._ends:  # at an epoch's end others hear of its row first
            self._leave()

    def epoch(self, row: EpochRow) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._signals.number is None or self._step == self._total:  # only the final evaluation is left
            return
        where = f" after step {self._step} of {self._total}"
        try:
            self._keep()
        except ValueError as error:  # a UserError: the disk is full, say
            where += f"; {error}"
        raise self._signals.interrupted(where)
