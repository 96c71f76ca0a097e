"""Time `fastcifar train` from its start to the end of its first training step on a CPU, in fresh processes.

    python -m bench.first_step                        # DavidNet on CIFAR-10 as $FASTCIFAR_DATA or the cache has it
    python -m bench.first_step --dataset synthetic

Every process runs the real command, which is stopped after its first step: nothing is saved. The files are in the
system's cache from the second process on; the first is shown, and counted like the others.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.program import new_recipe_parser, run_program
from bench.record import show
from fastcifar.errors import UserError

# Run the command line up to the first step, then print a line of JSON and end.
_CHILD = """
import json, os, sys
import fastcifar.cli.train
from fastcifar.cli import main
from fastcifar.phases import Phases
from fastcifar.screen import Screen

class Kept(Phases):
    def __init__(self, before):
        super().__init__(before)
        Kept.last = self

def stop(self, step, total_steps, so_far):
    print(json.dumps(Kept.last.restart()), flush=True)
    os._exit(0)

fastcifar.cli.train.Phases = Kept
Screen.step = stop
sys.exit(main(sys.argv[1:]))
"""


def main() -> int:
    parser = new_recipe_parser("bench.first_step", __doc__)
    parser.add_argument("--dataset", default="cifar10", choices=("cifar10", "synthetic"))
    parser.add_argument("--processes", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    if arguments.processes < 1:
        raise UserError(f"--processes is {arguments.processes}; allowed: 1 or more")
    flags = ["--recipe", arguments.recipe, "--dataset", arguments.dataset, *["--quick"] * arguments.quick]
    runs = []
    for _ in range(arguments.processes):
        runs.append(first_step(flags))
        parts = "  ".join(f"{name} {seconds:.2f}" for name, seconds in runs[-1].items())
        print(f"{sum(runs[-1].values()):6.2f} s: {parts}", flush=True)
    totals = [sum(run.values()) for run in runs]
    record = {
        "what": f"`fastcifar train --recipe {arguments.recipe}`: process start to the end of the first step",
        "value": f"{statistics.median(totals):.1f} s",
        "n": len(totals),
        "spread": f"{min(totals):.1f} to {max(totals):.1f} s",
        "command": " ".join(["python -m bench.first_step", *flags]),
        "runs": runs,
    }
    show(record, arguments.save, "cpu")
    return 0


def first_step(flags: list[str]) -> dict[str, float]:
    """Return the phases of one fresh process up to the end of its first step. Raises UserError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        command = [sys.executable, "-c", _CHILD, "train", "--device", "cpu", "--quiet", "--out", out, *flags]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"fastcifar train failed: {' '.join(done.stderr.split())[-300:]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    run_program("bench.first_step", main)
