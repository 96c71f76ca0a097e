"""Time what the shown progress of a training costs: the same training with and without it, in turn.

    python -m bench.progress                          # DavidNet on 50,000 images: long on CPUs
    python -m bench.progress --quick --images 8000    # a narrower network and fewer images

The bars are drawn on a pseudo-terminal of 80 columns, which a thread reads. Every round trains once without progress
and once with it, in alternating order; the seconds are those of the whole call, and their ratio is taken in each round.
Beside it stand the seconds of the listeners, which other programs on the machine disturb less, and those that importing
rich takes, once in a process.
"""

from __future__ import annotations

import contextlib
import os
import pty
import statistics
import sys
import threading
import time
from collections.abc import Iterator

from bench.program import new_recipe_parser, recipe_of, run_program
from bench.record import show
from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.kernels import keep_freed_memory
from fastcifar.recipes import label
from fastcifar.training import Trainer
from fastcifar.training.progress import showing


def main() -> int:
    parser = new_recipe_parser("bench.progress", __doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--images", type=int, default=50_000, metavar="N")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        raise UserError(f"--rounds is {arguments.rounds}; allowed: 2 or more")
    keep_freed_memory()  # as the command line does
    trainer = Trainer(recipe_of(arguments), make_synthetic(arguments.images, 1000))
    began = time.perf_counter()
    import rich.live  # noqa: F401  (as the first bar does)

    imported = time.perf_counter() - began
    with terminal() as drawn:
        seconds(trainer, shown=True)  # compiles and makes room in memory
        pairs = []
        for number in range(arguments.rounds):
            found = {shown: seconds(trainer, shown) for shown in ((False, True), (True, False))[number % 2]}
            pairs.append((found[False][0], *found[True]))
    command = f"python -m bench.progress --recipe {arguments.recipe}{' --quick' * arguments.quick}"
    show(record(trainer, pairs, imported, drawn, f"{command} --images {arguments.images}"), arguments.save)
    return 0


def seconds(trainer: Trainer, shown: bool) -> tuple[float, float]:
    """Train once, `shown` or not, and return the seconds of the call, and those of the listeners in it."""
    began = time.perf_counter()
    with showing(shown, []) as listeners:
        run = trainer.run(listeners=listeners)
    return time.perf_counter() - began, run.record.phases.get("listeners", 0.0)


@contextlib.contextmanager
def terminal() -> Iterator[list[int]]:
    """Make a pseudo-terminal of the standard streams while the block runs, and give how many bytes it was written."""
    master, slave = pty.openpty()
    count, before, kept = [0], (sys.stdout, sys.stderr), os.environ.get("COLUMNS")

    def read() -> None:
        with contextlib.suppress(OSError):  # it is closed
            while text := os.read(master, 1 << 16):
                count[0] += len(text)

    threading.Thread(target=read, daemon=True).start()
    os.environ["COLUMNS"] = "80"
    try:
        with open(slave, "w", encoding="utf-8") as stream:
            sys.stdout = sys.stderr = stream
            try:
                yield count
            finally:
                sys.stdout, sys.stderr = before
    finally:
        os.environ.pop("COLUMNS") if kept is None else os.environ.update(COLUMNS=kept)
        os.close(master)


def record(
    trainer: Trainer, pairs: list[tuple[float, float, float]], imported: float, drawn: list[int], command: str
) -> dict[str, object]:
    """Return the result as `bench.record.append` takes it; `pairs` are the seconds without progress, with it, and of
    its listeners."""
    if not drawn[0]:
        raise UserError("nothing was drawn; allowed: without NO_COLOR and TERM=dumb")
    costs = [shown / plain - 1 for plain, shown, _ in pairs]
    plain = statistics.median(plain for plain, _, _ in pairs)
    heard = statistics.median(listeners / shown for _, shown, listeners in pairs)
    parts = f"{heard:.2%} in listeners; importing rich {imported:.2f} s, once"
    return {
        "what": f"the shown progress of `{label(trainer.recipe)}`, of a training of {trainer.total_steps} steps",
        "value": f"{statistics.median(costs):+.2%} of {plain:.1f} s ({parts})",
        "n": len(costs),
        "spread": f"{min(costs):+.2%} to {max(costs):+.2%}",
        "command": command,
        "seconds": pairs,
    }


if __name__ == "__main__":
    run_program("bench.progress", main)
