"""Metrics and configuration as TensorBoard's event files, written by its own package."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcifar.output import user_path
from fastcifar.track.packages import refuse_missing
from fastcifar.track.tracker import METRICS, Metrics, Tracker

_NUMBERS = itertools.count()
"""Sets apart the files that one process begins in one second."""


class TensorBoard(Tracker):
    """Writes an event file into `folder`: the metrics as scalars by epoch, the configuration as hyperparameters.

    A training that goes on from a state begins a further file, which takes back the epochs after that state, so that
    TensorBoard shows each once. One that begins in the same folder takes back all epochs of the one before.

    Events are written at once, by no thread of their own (as torch's SummaryWriter has one, which could compete with
    the training). Raises UserError without the package tensorboard, and for what is no path.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        refuse_missing(["tensorboard"])
        self.folder = user_path(folder, "the folder of TensorBoard's files")
        self._file = self.folder

    def begin(self, name: str, config: dict[str, Any], told: Sequence[Metrics]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # pyright: ignore

        self.folder.mkdir(parents=True, exist_ok=True)
        goes_on = bool(told) and any(self.folder.glob("events.out.tfevents.*"))
        ending = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS):04d}"
        self._file = self.folder / f"events.out.tfevents.{ending}"
        first = told[-1]["epoch"] + 1 if goes_on else 0
        start = SessionLog(status=SessionLog.START)  # what was written of `first` and later ones counts no more
        self._write(Event(file_version="brain.Event:2"), Event(step=first, session_log=start))
        if not goes_on:
            values = {
                key: value if isinstance(value, bool | int | float) else str(value) for key, value in config.items()
            }
            self._write(Event(summary=hparams_pb(values, trial_id=name)))
            for metrics in told:
                self.note(metrics)

    def note(self, metrics: Metrics) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        scalars = [(name, metrics[name]) for name in METRICS[1:] if metrics[name] is not None]
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars]
        self._write(Event(step=metrics["epoch"], summary=Summary(value=values)))

    def _write(self, *events: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter  # pyright: ignore

        with self._file.open("ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())
