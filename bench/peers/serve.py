"""The worker's side of `Worker`: a process that loads one program and runs it when it is told to.

Requests and replies are JSON objects, one a line, on the standard input and output. What the program prints goes with
the errors. Not for calling by hand.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from bench.peers.harness import PLAIN, WITH_TTA, Enough, Harness
from bench.peers.ours import Ours
from bench.peers.programs import OURS, Program, get_program
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


def load(peer: str, checkout: Path | None, data: str | None, device_name: str) -> tuple[Ours | Theirs, dict[str, Any]]:
    """The program, and what there is to know of it."""
    device = resolve_device(device_name)
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
    return program, {
        "batch_size": batch_size,
        "dtype": dtype,
        "device": dataclasses.asdict(describe_device(device)),
        "torch": torch.__version__,
        "dataset": dataset.name,
    }


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # their own output, of C code too, is none of ours
    arguments = json.loads(sys.stdin.readline())
    checkout = Path(arguments["checkout"]).resolve() if arguments["checkout"] else None

    def answer(reply: dict[str, object]) -> None:
        sys.stdout.flush()
        print(json.dumps(reply), file=replies, flush=True)

    try:
        program, facts = load(arguments["peer"], checkout, arguments["data"], arguments["device"])
    except (Exception, SystemExit) as error:
        return answer(_failure(error))
    answer(facts)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = program.run(request["steps"], request["seed"])
            answer({"peer": arguments["peer"], **result, "images": result["steps"] * facts["batch_size"]})
        except (Exception, SystemExit) as error:
            answer(_failure(error))


def _failure(error: BaseException) -> dict[str, str]:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    line = " ".join(str(error).split())
    return {"error": f"{kind}{line}"[:500], "traceback": "".join(traceback.format_exception(error))}


if __name__ == "__main__":
    main()
