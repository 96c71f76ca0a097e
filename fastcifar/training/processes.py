"""`Processes`: the seconds of all processes that one training took, of which there are several where it went on."""

from __future__ import annotations

import operator
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from fastcifar.errors import Notice
from fastcifar.phases import Phases, in_order


class Processes:
    """What a record says of the processes of a training: the one before up to the state that the next went on from, and
    the last. `phases` are those of the present one.

    first_step_seconds: from the beginning of the first to the end of the first step.
    resumed: the steps at which the training went on.
    """

    def __init__(self, phases: Phases) -> None:
        self._phases = phases
        self.begin()

    def begin(self) -> None:
        """Start afresh: the training begins in this process."""
        self.first_step_seconds: float | None = None
        self.resumed: tuple[int, ...] = ()
        self._command = tuple(sys.argv)
        self._before: dict[str, float] = {}
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - self._phases.total))

    def end_step(self) -> None:
        """Note the end of a step. On CUDA, where nothing waits for it, the time when it was queued."""
        if self.first_step_seconds is None:
            self.first_step_seconds = sum(self._before.values()) + self._phases.total

    def finish(self) -> dict[str, Any]:
        """Return the record's fields, and let the phases count anew."""
        seconds = self._with(self._phases.restart())
        return {**self._facts(), "phases": seconds, "process_seconds": sum(seconds.values())}

    def state_dict(self) -> dict[str, Any]:
        """Return all up to now, and the number of threads."""
        facts = {**self._facts(), "resumed": list(self.resumed), "command": list(self._command)}
        return {**facts, "phases": self._with(self._phases.seconds()), "threads": torch.get_num_threads()}

    def load_state_dict(self, state: Mapping[str, Any], step: int, device: torch.device) -> None:
        """Go on from a `state_dict` after `step` steps; an empty one, as of an older state, says nothing."""
        self.begin()
        first, threads = state.get("first_step_seconds"), state.get("threads")
        self.first_step_seconds = None if first is None else float(first)
        self.resumed = (*map(operator.index, state.get("resumed", ())), step)
        self._before = {str(name): float(seconds) for name, seconds in state.get("phases", {}).items()}
        self._started = str(state.get("started", self._started))
        self._command = tuple(map(str, state.get("command", self._command)))
        if device.type == "cpu" and threads not in (None, here := torch.get_num_threads()):
            what = f"threads of the CPU: {threads} before, {here} from here on"
            warnings.warn(f"{what}: its numbers may differ in the last bits", Notice, stacklevel=2)

    def _facts(self) -> dict[str, Any]:
        return {
            "started": self._started,
            "first_step_seconds": self.first_step_seconds,
            "resumed": self.resumed,
            "command": self._command,
        }

    def _with(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Return `seconds` by phase, those of the processes before added."""
        before = self._before
        return in_order({name: before.get(name, 0.0) + seconds.get(name, 0.0) for name in {**before, **seconds}})
