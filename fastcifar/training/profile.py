"""A trace of a few training steps, for Chrome's trace viewer (chrome://tracing, ui.perfetto.dev)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

from fastcifar.errors import UserError
from fastcifar.record import RunRecord
from fastcifar.training.listeners import Listener
from fastcifar.training.step import PART

if TYPE_CHECKING:
    from fastcifar.training.train import Trainer

_STEPS = 3


class StepTrace(Listener):
    """A listener that records operations of the first run that it hears of: three steps, or more where `on_step` is
    called less often.

    It starts at its first call, so that no first use of anything is in the trace, and stops at the call three steps
    later. On a CPU, with a call after each step, these are steps 2 to 4; on CUDA, with a call after each epoch and its
    evaluation, the second epoch and its evaluation.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        with profile(activities=activities):  # the first use takes a second: here, before the training
            torch.zeros(1, device=device)
        self._profile = profile(activities=activities)
        self._first: int | None = None
        self._is_over = False
        self.seed: int | None = None
        """The seed of that run."""
        self.steps: tuple[int, int] | None = None
        """The first and the last step of the trace, counted from 1; None where the training was too short."""

    def on_start(self, trainer: Trainer) -> None:
        if self.seed is None:
            self.seed = trainer.state.seed

    def on_step(self, step: int, total_steps: int) -> None:
        if self._is_over:
            return
        if self._first is None:
            self._first = step + 1
            self._profile.start()
        elif step >= self._first + _STEPS - 1:
            self.steps = self._first, step
            self.close()

    def on_end(self, record: RunRecord) -> None:
        self.close()

    def close(self) -> None:
        """Stop recording, also where the training's end or failure left it open."""
        if self._first is not None and not self._is_over:
            self._profile.stop()
        self._is_over = True

    def parts(self) -> dict[str, float]:
        """Return `seconds[part]` per step of augment, forward, backward and optimizer, on the host's clock; empty
        without a trace, or where the steps were replayed as a CUDA graph, which has no parts."""
        if self.steps is None:
            return {}
        count = self.steps[1] - self.steps[0] + 1
        return {
            event.key.removeprefix(PART): event.cpu_time_total / 1e6 / count
            for event in self._profile.key_averages()
            if event.key.startswith(PART) and event.cpu_time_total
        }

    def save(self, path: Path) -> None:
        """Write the trace, if there is one, as JSON. Raises UserError where it cannot be written."""
        if self.steps is None:
            return
        try:
            self._profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot save the trace in {path}: {error}") from None
        if not path.is_file():  # torch prints that to standard error and goes on
            raise UserError(f"cannot save the trace in {path}")
