"""The process behind `Worker`: it loads one program and runs it when asked to. Not for calling by hand."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import torch

from bench.peers.adapt import cpu_type
from bench.peers.harness import PLAIN, WITH_TTA, Enough, Harness
from bench.peers.programs import OURS, Program, get_program
from bench.resident import Answer, serve
from fastcifar.data import Dataset, load_dataset
from fastcifar.errors import UserError
from fastcifar.kernels import keep_freed_memory
from fastcifar.phases import Phases
from fastcifar.recipes import Recipe, get_recipe
from fastcifar.training import Listener, Trainer, describe_device, resolve_device

NOT_OF_STOPPED = dict.fromkeys(("own_seconds", "train_seconds", "time_seconds", "accuracy", "plain_accuracy"))
"""Entries that the result of a stopped training lacks."""


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
            seconds = self._step_seconds(steps, seed)
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

    def _step_seconds(self, steps: int, seed: int) -> list[float]:
        """Train until enough is timed. Raises ValueError where the training ends before."""
        on_cuda = self.trainer.device.type == "cuda"
        marks: list[float] = []

        def note(seconds: float) -> None:
            marks.append(seconds)
            if len(marks) > (1 if on_cuda else steps):
                raise Enough

        by_step = Listener(on_step=lambda step, total: note(time.perf_counter()))
        listener = Listener(on_epoch=lambda row: note(row.seconds)) if on_cuda else by_step
        try:
            self.trainer.run(seed, listeners=[listener], eval_every=0)
        except Enough:
            seconds = [after - before for before, after in itertools.pairwise(marks)]
            per_epoch = self.trainer.timeline.steps_per_epoch
            return [seconds[0] / per_epoch] * per_epoch if on_cuda else seconds
        raise ValueError(f"{self.trainer.recipe.name} ended before the steps that were asked for: they are too many")


class Theirs:
    """A peer's program, loaded; `run` is as `Ours.run`."""

    def __init__(self, program: Program, checkout: Path, harness: Harness) -> None:
        self.program, self.harness = program, harness
        self.train = program.load(checkout, harness)

    def run(self, steps: int | None, seed: int) -> dict[str, object]:
        harness = self.harness
        steps = self.program.stops_after if steps is None else steps
        harness.begin(steps, seed)
        try:
            self.train(seed)
        except Enough:
            own_seconds, seconds = harness.read_stopped(), harness.step_seconds
            timed = {"step_seconds": seconds, "seconds": sum(seconds), "own_seconds": own_seconds}
            return {**NOT_OF_STOPPED, "steps": harness.steps_done - 1, **timed}
        if steps is not None:
            raise UserError(f"it ended after {harness.steps_done} steps; allowed: fewer than that, and one untimed")
        return {
            "steps": harness.steps_done,
            "step_seconds": harness.step_seconds,
            "seconds": harness.seconds,
            "own_seconds": harness.own_seconds,
            "train_seconds": harness.train_seconds,
            "time_seconds": harness.time_seconds,
            "accuracy": harness.accuracies.get(WITH_TTA),
            "plain_accuracy": harness.accuracies.get(PLAIN),
        }


def load(arguments: dict[str, Any]) -> tuple[dict[str, object], Answer]:
    """Load the program that `arguments` names; returns its facts, and the function that runs it."""
    peer, data = arguments["peer"], arguments["data"]
    checkout = Path(arguments["checkout"]).resolve() if arguments["checkout"] else None
    device = resolve_device(arguments["device"])
    phases = Phases("start of Python and imports")
    with phases("data"):
        dataset = load_dataset("synthetic") if data == "synthetic" else load_dataset("cifar10", data)
    if peer.startswith(OURS):
        program = Ours(peer.removeprefix(OURS), dataset, device, phases)
        batch_size, dtype = program.trainer.recipe.batch_size, str(program.trainer.dtype).removeprefix("torch.")
    else:
        known = get_program(peer)
        batch_size, dtype = known.batch_size, known.cuda_dtype
        if device.type == "cpu":
            dtype = known.cpu_dtype or str(cpu_type()).removeprefix("torch.")
        program = Theirs(known, checkout, Harness(dataset, device, batch_size))
    facts = {
        "batch_size": batch_size,
        "dtype": dtype,
        "device": dataclasses.asdict(describe_device(device)),
        "torch": torch.__version__,
        "dataset": dataset.name,
    }

    def answer(request: dict[str, Any]) -> dict[str, object]:
        result = program.run(request["steps"], request["seed"])
        return {"peer": peer, **result, "images": result["steps"] * batch_size}

    return facts, answer


if __name__ == "__main__":
    serve(load)
