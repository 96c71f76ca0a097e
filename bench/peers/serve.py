"""The process behind `Worker`: it loads one program and runs it when asked to. Not for calling by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from bench.peers.harness import PLAIN, WITH_TTA, Enough, Harness
from bench.peers.ours import NOT_OF_STOPPED, Ours
from bench.peers.programs import OURS, Program, get_program
from bench.resident import Answer, serve
from fastcifar.data import load_dataset
from fastcifar.errors import UserError
from fastcifar.phases import Phases
from fastcifar.training import describe_device, resolve_device


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
        batch_size, dtype = known.batch_size, known.cpu_dtype if device.type == "cpu" else known.cuda_dtype
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
