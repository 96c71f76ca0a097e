"""`Checkpoints`: the states of a training on disk, from which it goes on after the process has ended in any way."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcifar.errors import Notice, UserError
from fastcifar.interval import Interval, read_interval
from fastcifar.locks import claimed
from fastcifar.output import PARTIAL, made, user_path
from fastcifar.record import EpochRow
from fastcifar.start import ColdStart, Start
from fastcifar.training.listeners import Listener
from fastcifar.training.state_file import read_state, write_state

if TYPE_CHECKING:
    from fastcifar.training.run import Run
    from fastcifar.training.train import Trainer

LONG_SECONDS = 120.0
"""By "auto", states are kept of trainings that are estimated to take longer."""
OFTEN_SECONDS = 600.0
"""By "auto", a state does not wait for the end of an epoch when the last state is so old."""
SHARE = 0.01
"""The largest part of the time that "auto" spends on states."""
_COLD = ColdStart()


class Checkpoints(Listener):
    """The newest two states of a training, as files in `folder`. Among listeners it belongs last: what the others do at
    the end of an epoch is then done once the epoch's state is there.

    every: "auto": at the ends of epochs, and every 10 minutes within them, of a training that is estimated to take
        longer than two minutes, and so seldom that it costs less than a hundredth of the time. A number of epochs (2 or
        0.5), a time ("90s", "10min", "2h") or "never". Within epochs on a CPU alone.

    Where a state cannot be written, such as on a full disk, the training goes on, with a `Notice`.
    Raises UserError for a wrong interval.
    """

    def __init__(self, folder: str | Path, every: str | float | Interval = "auto") -> None:
        super().__init__()
        self.folder, self.every = user_path(folder, "the folder of checkpoints"), read_interval(every)
        self._trainer: Trainer | None = None
        self._whole: list[Path] = []
        self._complained = False

    def run(
        self, trainer: Trainer, seed: int = 0, *, listeners: Sequence[Listener] = (), init: Start = _COLD, **asked: Any
    ) -> Run:
        """Train as `trainer.run` does, from the newest state where there is one, and remove the states at the end.

        Raises UserError where the states are of another training, all damaged, or another process uses them.
        """
        with made(self.folder), claimed(self.folder / ".lock") as is_ours:
            if not is_ours:
                raise UserError(f"another process trains with the states in {self.folder}; allowed: another folder")
            state = self.newest()
            if state is not None and isinstance(init, Start):  # `Trainer.run` refuses what is none
                self._refuse_another(state, seed, init)
            run = trainer.run(seed, listeners=[*listeners, self], init=init, resume=state, **asked)
            self.remove()
        self.remove()  # the folder, which the lock was in
        return run

    def on_start(self, trainer: Trainer) -> None:
        if self._files() and not trainer.state.processes.resumed:
            allowed = "resume=checkpoints.newest(), or another folder"
            raise UserError(f"{self.folder} holds the states of a training; allowed: {allowed}")
        self._trainer, self._ends = trainer, {epoch.end for epoch in trainer.timeline.epochs[:-1]}
        self._first_step, self._began = trainer.state.step, time.monotonic()
        self._last, self._cost, self._complained = self._began, 0.0, False
        self._count = self._times()

    def on_step(self, step: int, total_steps: int) -> None:
        if step not in self._ends and self._is_due(within=step < total_steps):  # at the others on_epoch is to come
            self._keep()

    def on_epoch(self, row: EpochRow) -> None:
        if row.epoch and self._of().state.step < self._of().total_steps and self._is_due():
            self._keep()

    def save(self) -> Path:
        """Write the present state of the training, and return its file; the newest two remain. For a listener, such as
        one that a signal stops. Raises UserError where that cannot be done, and before a training."""
        began = time.monotonic()
        trainer = self._of()
        path = self.folder / f"step-{trainer.state.step:08d}.pt"
        if self._whole[-1:] == [path] and path.is_file():  # a signal just after it was written
            return path
        write_state(path, trainer.state.state_dict())
        others = [each for each in self._whole or self._older(path) if each != path]
        self._whole = [*others[-1:], path]
        self._remove(keep=self._whole)
        self._last = time.monotonic()
        self._cost, self._count = self._last - began, self._times()
        return path

    def newest(self) -> Mapping[str, Any] | None:
        """Return the newest state that is whole, for `Trainer.run(resume=...)`; None where there is none at all. Each
        damaged one that is passed over is told in a `Notice`. Raises UserError where all are damaged."""
        reasons = []
        for path in reversed(self._files()):
            try:
                state = read_state(path)
            except UserError as error:
                reasons.append(str(error))
                continue
            self._whole = [path]
            for reason in reasons:
                warnings.warn(f"{reason}; the training goes on from {path.name}", Notice, stacklevel=2)
            return state
        if reasons:
            raise UserError(f"no state of a training in {self.folder} is whole: {'; '.join(reasons)}")
        return None

    def remove(self) -> None:
        """Remove the states, and the folder if nothing else is in it."""
        self._remove(keep=[])
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _refuse_another(self, state: Mapping[str, Any], seed: int, init: Start) -> None:
        there, here = (
            {"seed": each["seed"], **each["init"], "source": ""}
            for each in (state, {"seed": seed, "init": init.describe()})
        )
        for name in {**here, **there}:
            if there.get(name) != here.get(name):
                what = f"is of {name} {there.get(name)}, not {here.get(name)}"
                raise UserError(f"the training in {self.folder} {what}; allowed: another folder")

    def _of(self) -> Trainer:
        if self._trainer is None:
            raise UserError("no training has begun; allowed: a training's state, from a listener's on_start on")
        return self._trainer

    def _keep(self) -> None:
        try:
            self.save()
        except UserError as error:
            self._last, self._count = time.monotonic(), self._times()
            if not self._complained:
                warnings.warn(f"{error}; the training goes on", Notice, stacklevel=2)
            self._complained = True

    def _is_due(self, within: bool = False) -> bool:
        """Return True if a state should be written now; `within`: not at the end of an epoch."""
        if self.every.never:
            return False
        if self.every.epochs:
            return self._times() > self._count
        since = time.monotonic() - self._last
        if self.every.seconds:
            return since >= self.every.seconds
        trainer = self._of()
        steps = trainer.state.step - self._first_step
        estimate = (time.monotonic() - self._began) / max(1, steps) * trainer.total_steps
        return estimate > LONG_SECONDS and since >= max(self._cost / SHARE, OFTEN_SECONDS if within else 0)

    def _times(self) -> int:
        """Return how often the interval in epochs has passed since the beginning of the training."""
        if not self.every.epochs:
            return 0
        step, timeline = self._of().state.step, self._of().timeline
        epoch = next((epoch for epoch in timeline.epochs if epoch.end > step), None)
        if epoch is None:
            return int(len(timeline.epochs) / self.every.epochs)
        return int((epoch.number + (step - epoch.first_step) / epoch.steps) / self.every.epochs)

    def _files(self) -> list[Path]:
        """Return the files of states, the oldest first."""
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except OSError:
            return []
        return [self.folder / name for name in sorted(names) if re.fullmatch(r"step-[0-9]{8,}\.pt", name)]

    def _older(self, path: Path) -> list[Path]:
        return [each for each in self._files() if each.name < path.name]

    def _remove(self, keep: list[Path]) -> None:
        """Remove all states but `keep`, and what a process that was killed has left half written."""
        with contextlib.suppress(OSError):
            for path in [*self._files(), *self.folder.glob(f"{PARTIAL}*.pt")]:
                if path not in keep:
                    path.unlink(missing_ok=True)
