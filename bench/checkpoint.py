"""Time what a checkpoint of a training costs: to copy its state, and to write it to a file and the file to the disk.

    python -m bench.checkpoint                        # DavidNet, in the temporary folder; minutes on two CPU cores
    python -m bench.checkpoint --folder runs          # on the disk of this folder
    python -m bench.checkpoint --quick                # a narrower network: seconds

The training is of 50,000 random images, as a state's size goes by their number too, and is stopped after a few steps,
with a checkpoint after each. An epoch is estimated as its number of steps times the median of theirs, the first left
out. It is a CPU's: on CUDA the seconds of steps are not known one by one.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.program import new_recipe_parser, recipe_of, run_program
from bench.record import show
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.kernels import keep_freed_memory
from fastcifar.training import Listener, Trainer
from fastcifar.training.state_file import write_state

_IMAGES = 50_000


class Enough(Exception):
    """All rounds are over."""


@dataclass(eq=False)
class Rounds(Listener):
    """The seconds of each round: a step, a copy of the state and its file, which is written to the disk."""

    file: Path
    rounds: int
    steps: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)

    def on_start(self, trainer: Trainer) -> None:
        self.trainer, self.began = trainer, time.perf_counter()

    def on_step(self, step: int, total_steps: int) -> None:
        ends = [time.perf_counter()]
        state = self.trainer.state.state_dict()
        ends.append(time.perf_counter())
        write_state(self.file, state)
        ends.append(time.perf_counter())
        if step > 1:  # the first step and file make room in memory
            self.steps.append(ends[0] - self.began)
            self.copies.append(ends[1] - ends[0])
            self.files.append(ends[2] - ends[1])
        if len(self.steps) == self.rounds:
            raise Enough
        self.began = time.perf_counter()


def main() -> int:
    parser = new_recipe_parser("bench.checkpoint", __doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--folder", type=Path, help="on the disk that is timed; default: the temporary folder")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        raise UserError(f"--rounds is {arguments.rounds}; allowed: 2 or more")
    recipe = recipe_of(arguments)
    keep_freed_memory()  # as the command line does
    trainer = Trainer(recipe, make_synthetic(_IMAGES, 10), "cpu")
    if trainer.total_steps <= arguments.rounds:
        raise UserError(f"--rounds is {arguments.rounds}; allowed: fewer than the {trainer.total_steps} steps")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rounds = Rounds(Path(folder) / "state.pt", arguments.rounds)
        try:
            trainer.run(listeners=[rounds])
        except Enough:
            size = rounds.file.stat().st_size
    command = f"python -m bench.checkpoint --recipe {arguments.recipe}" + " --quick" * arguments.quick
    show(record(rounds, trainer, size, command), arguments.save, "cpu")
    return 0


def record(rounds: Rounds, trainer: Trainer, size: int, command: str) -> dict[str, object]:
    """Return the result as `bench.record.append` takes it; `size` is the file's in bytes."""
    epoch = statistics.median(rounds.steps) * trainer.timeline.steps_per_epoch
    costs = [copy + file for copy, file in zip(rounds.copies, rounds.files, strict=True)]
    parts = f"{statistics.median(rounds.copies):.3f} s to copy, {statistics.median(rounds.files):.3f} s to write"
    return {
        "what": f"a checkpoint of `{trainer.recipe.name}`, {size / 1e6:.0f} MB, against an epoch",
        "value": f"{statistics.median(costs) / epoch:.2%} of {epoch:.0f} s ({parts})",
        "n": len(costs),
        "spread": f"{min(costs):.2f} to {max(costs):.2f} s",
        "command": command,
        "step_seconds": rounds.steps,
        "copy_seconds": rounds.copies,
        "file_seconds": rounds.files,
    }


if __name__ == "__main__":
    run_program("bench.checkpoint", main)
