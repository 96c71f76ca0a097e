"""fastcifar run as the peers are: one trainer that stays, whole trainings or some steps of one."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch

from bench.peers.harness import Enough
from fastcifar.data import Dataset
from fastcifar.kernels import keep_freed_memory
from fastcifar.phases import Phases
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.training import Listener, Trainer

NOT_OF_STOPPED = dict.fromkeys(("own_seconds", "train_seconds", "time_seconds", "accuracy", "plain_accuracy"))
"""What the result of a training that was stopped does not say."""


class Ours:
    """A recipe, by its name or the path of its TOML file, ready to train; `phases` as of `Trainer`."""

    def __init__(
        self, recipe: str | Path | Recipe, dataset: Dataset, device: torch.device, phases: Phases | None = None
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()  # as the command line does
        recipe = recipe if isinstance(recipe, Recipe) else get_recipe(str(recipe))
        self.trainer = Trainer(recipe, dataset, device, phases)

    def run(self, steps: int | None, seed: int) -> dict[str, object]:
        """Train from `seed` to the end, or one untimed step and `steps` more; the result is that of `Worker.run`.

        On CUDA, where nobody looks in between the steps of an epoch, these are the steps of the second epoch, however
        many were asked for: `steps` of the result says how many.
        """
        if steps is not None:
            seconds = self._epoch(seed) if self.trainer.device.type == "cuda" else self._steps(steps, seed)
            return {**NOT_OF_STOPPED, "steps": len(seconds), "step_seconds": seconds, "seconds": sum(seconds)}
        start = time.perf_counter()
        run = self.trainer.run(seed, eval_every=0)
        return {
            "steps": run.record.steps,
            "step_seconds": [],
            "seconds": time.perf_counter() - start,
            "own_seconds": run.time_seconds,
            "train_seconds": run.train_seconds,
            "time_seconds": run.time_seconds,
            "captured": run.record.captured,
            "not_captured": run.record.not_captured,
            "phases": run.record.phases,
            "accuracy": run.tta_accuracy,
            "plain_accuracy": run.accuracy,
        }

    def _steps(self, steps: int, seed: int) -> list[float]:
        times: list[float] = []

        def on_step(step: int, total: int) -> None:
            times.append(time.perf_counter())
            if len(times) > steps:
                raise Enough

        self._stopped(seed, Listener(on_step=on_step))
        return [after - before for before, after in itertools.pairwise(times)]

    def _epoch(self, seed: int) -> list[float]:
        rows: list[float] = []

        def on_epoch(row) -> None:
            rows.append(row.seconds)
            if len(rows) == 2:
                raise Enough

        self._stopped(seed, Listener(on_epoch=on_epoch))
        per_epoch = self.trainer.timeline.steps_per_epoch
        return [(rows[1] - rows[0]) / per_epoch] * per_epoch

    def _stopped(self, seed: int, listener: Listener) -> None:
        """Train until the listener stops it. Raises ValueError where it does not."""
        try:
            self.trainer.run(seed, listeners=[listener], eval_every=0)
        except Enough:
            return
        raise ValueError(f"{self.trainer.recipe.name} ended before the steps that were asked for: they are too many")
