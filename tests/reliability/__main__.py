"""Stop, starve and deceive fastcifar, and count what is lost or let in: the table of docs/reliability.md.

    python -m tests.reliability                     # everything, in 17 minutes on two cores
    python -m tests.reliability --only kills faults # parts of it
    python -m tests.reliability --kills 1000 --seconds 3600    # for longer
    python -m tests.reliability --save bench/results/reliability.jsonl    # a new table: then python -m bench.tables

Each figure is a line. What went wrong is printed, with what is needed to see it again, and the exit status is 1. Some
faults need a small file system of their own, which the superuser alone can mount.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.program import add_save_option, new_parser
from bench.record import append
from tests.fuzz import engine
from tests.reliability import faults, kills, parallel, together

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    value: str
    n: int
    wrong: tuple[str, ...] = ()
    """What went wrong."""


def killed(folder: Path, count: int, seed: int) -> Iterator[Figure]:
    """Kill trainings at random instants."""
    struck = kills.kill(folder / "kills", count, seed)
    value = (
        f"{struck.finished - len(struck.faults)} of {struck.finished} trainings ended bit for bit as undisturbed ones"
    )
    what = f"killed (SIGKILL) at random instants, {struck.resumed} of them with something to go on from"
    yield Figure(what, value, struck.kills, tuple(struck.faults))
    count = max(1, count // 5)
    struck = kills.kill(folder / "signals", count, seed, (signal.SIGINT, signal.SIGTERM), ("everything", "averages"))
    statuses = ", ".join(f"{status}: {times}" for status, times in sorted(struck.statuses.items()))
    value = f"{struck.finished - len(struck.faults)} of {struck.finished} trainings ended so"
    yield Figure(f"stopped by SIGINT and SIGTERM (exit statuses {statuses})", value, struck.kills, tuple(struck.faults))


def faulty(folder: Path) -> Iterator[Figure]:
    """Let the disk, the data and the clock fail."""
    for what, check in faults.CHECKS.items():
        try:
            found = check(folder / what.replace(" ", "-"))
        except PermissionError as error:
            print(f"{what}: left out, since {error}", flush=True)
            continue
        value = f"{found.clear} ended well or with a clear line, {found.kept} lost nothing"
        yield Figure(what, value, found.trainings, tuple(found.faults))


def fuzzed(folder: Path, seconds: int, seed: int) -> Iterator[Figure]:
    """Fuzz every parser, two at a time."""

    def fuzz(name: str) -> Figure:
        results = folder / f"{name}.json"
        words = [name, "--seconds", str(seconds), "--seed", str(seed), "--json", str(results)]
        done = subprocess.run([sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT, capture_output=True, text=True)
        if not results.is_file():
            return Figure(f"fuzzed: {name}", "it failed", 0, (done.stderr,))
        [found] = json.loads(results.read_text())
        wrong = tuple(f"{name}: {each}" for each in found["findings"])
        return Figure(f"fuzzed: {name}", f"{len(wrong)} findings", found["cases"], wrong)

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(fuzz, engine.names())


def cost(folder: Path) -> Iterator[Figure]:
    """Measure what checkpoints cost."""
    results = folder / "cost.jsonl"
    subprocess.run([sys.executable, "-m", "bench.checkpoint", "--save", str(results)], cwd=ROOT, check=True)
    for line in results.read_text().splitlines():
        result = json.loads(line)
        yield Figure(result["what"], f"{result['value']} ({result['spread']})", result["n"])


def main() -> int:
    parser = new_parser("tests.reliability", __doc__)
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="trainings are killed so often")
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="of several processes at once (parallel)")
    parser.add_argument("--seconds", type=int, default=60, metavar="S", help="of fuzzing, for each parser")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="names the instants and the mutations")
    parser.add_argument("--only", nargs="+", metavar="PART", help="kills, faults, together, parallel, cost, fuzz")
    add_save_option(parser)
    given = parser.parse_args()
    parts: dict[str, Callable[[Path], Iterator[Figure]]] = {
        "cost": cost,
        "kills": lambda folder: killed(folder, given.kills, given.seed),
        "faults": faulty,
        "together": lambda folder: (Figure(*found) for found in together.figures(folder)),
        "parallel": lambda folder: (Figure(*found) for found in parallel.figures(folder, given.runs, given.seed)),
        "fuzz": lambda folder: fuzzed(folder, given.seconds, given.seed),
    }
    if unknown := set(given.only or ()) - set(parts):
        parser.error(f"--only is {', '.join(sorted(unknown))}; allowed: {', '.join(parts)}")
    wrong: list[str] = []
    command = "make reliability" if given.only is None else f"python -m tests.reliability --only {' '.join(given.only)}"
    for name in given.only or parts:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"fastcifar-{name}-") as folder:
            for figure in parts[name](Path(folder)):
                print(f"{figure.what}: {figure.value} (n={figure.n})", flush=True)
                print("".join(f"  WRONG: {each}\n" for each in figure.wrong), end="", flush=True)
                wrong += figure.wrong
                if given.save:
                    row = {"what": figure.what, "figure": figure.value, "n": f"{figure.n:,}"}
                    record = {"table": "reliability", "row": row, "n": figure.n, "spread": "-", "command": command}
                    append(given.save, record, "cpu")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
