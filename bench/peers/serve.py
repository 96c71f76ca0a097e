"""The worker's side of `Worker`: a process that loads one program and runs it when it is told to. Not for calling by
hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from bench.peers.harness import PLAIN, WITH_TTA, Enough, Harness
from bench.peers.ours import Ours
from bench.peers.programs import OURS, Program, get_program
from bench.resident import Answer, serve
from fastcifar.data import load_dataset
from fastcifar.errors import UserError
from fastcifar.phases import Phases
from fastcifar.training import describe_device, resolve_device


class Theirs:
    """A peer's program, loaded; `run` as `Ours.run`."""

    def __init__(self, program: Program, checkout: Path, harness: Harness) -> None:
        self.program, self.harness = program, harness
        self.train = program.load(checkout, harness)

    def run(self, steps: int | None, seed: int) -> dict[str, object]:
        harness = self.harness
        steps = self.program.stops_after if steps is None else steps
        harness.begin(steps, seed)
        stopped = False
        try:
            self.train(seed)
        except Enough:
            stopped = True
            own_seconds = harness.read_stopped()
        if steps is not None and not stopped:
            raise UserError(f"it ended after {harness.steps_done} steps; allowed: fewer than that, and one untimed")
        return {
            "steps": harness.steps_done - stopped,
            "step_seconds": harness.step_seconds,
            "seconds": sum(harness.step_seconds) if stopped else harness.seconds,
            "own_seconds": own_seconds if stopped else harness.own_seconds,
            "train_seconds": None if stopped else harness.train_seconds,
            "time_seconds": None if stopped else harness.time_seconds,
            "accuracy": harness.accuracies.get(WITH_TTA),
            "plain_accuracy": harness.accuracies.get(PLAIN),
        }


def load(arguments: dict[str, Any]) -> tuple[dict[str, object], Answer]:
    """What there is to know of the program that `arguments` names, and what runs it."""
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
