"""Runs per hour of one process, and of several at once: `--parallel K`, and ranks of torchrun.

    python -m bench.many                            # one process, --parallel 2, 2 ranks; 3 rounds: 20 minutes
    python -m bench.many --device cuda --at-once 2 4 8 --rounds 5 --save FILE     # networks per minute on one GPU
    python -m bench.many --device cuda --networks warmstart-narrow --epochs 3

For a small network (DavidNet's widths divided by 8) and a large one (its own widths), or for recipes by name, on a
synthetic set, on CUDA on CIFAR-10. Every way is a command, as a user types it, in turn; its runs are timed by when
records were written, from when every process has had one: what a process takes to start is left out, and is shown
beside. The threads in all are the same.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.program import add_save_option, new_parser, run_program
from bench.record import show
from fastcifar.errors import UserError
from fastcifar.machine import cores
from fastcifar.recipes import Recipe, change, get_recipe, to_toml

ROOT = Path(__file__).resolve().parent.parent
IMAGES = {"cpu": {"small": 4096, "large": 1024}, "cuda": {"small": 50_000, "large": 50_000}}
"""Training images of an epoch, on the synthetic set of at most 10,000, or on CIFAR-10."""

START = "start of Python"


@dataclass(frozen=True)
class Way:
    """A way to train many runs: `count` processes, of `--parallel` or of torchrun."""

    name: str
    count: int
    ranks: bool = False

    def command(self, words: Sequence[str], threads: int | None) -> list[str]:
        """Return the command that trains with `words`, and so many threads in all."""
        python, program = sys.executable, ["-m", "fastcifar", "train", *words]
        if self.ranks:
            each = ["--threads", str(max(1, threads // self.count))] if threads else []
            return [python, "-m", "torch.distributed.run", f"--nproc-per-node={self.count}", *program, *each]
        given = ["--threads", str(threads)] if threads else []
        return [python, *program, "--parallel", str(self.count), *given]


def ways(device: str, at_once: Sequence[int]) -> list[Way]:
    """Return the ways to compare; torchrun's ranks on a CPU alone, as on one GPU they would load images each."""
    found = [Way("one process", 1), *(Way(f"--parallel {count}", count) for count in at_once)]
    return found + [Way(f"{count} ranks of torchrun", count, ranks=True) for count in at_once if device == "cpu"]


def recipe_of(network: str, device: str, epochs: float | None = None) -> Recipe:
    """Return the recipe of that name, or that of the "small" or the "large" network, which on a CPU take one epoch.

    epochs: instead of the recipe's.

    Raises UserError for an unknown name.
    """
    if network not in IMAGES[device]:
        return change(get_recipe(network), {} if epochs is None else {"epochs": epochs})
    large = get_recipe("davidnet")
    epochs = 1.0 if epochs is None and device == "cpu" else epochs
    changes: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    if network == "small":
        changes["network.widths"] = tuple(width // 8 for width in large.network.widths)  # pyright: ignore[reportAttributeAccessIssue]
    return dataclasses.replace(change(large, changes), name=network)


def rate(records: Sequence[tuple[float, dict[str, Any]]], count: int) -> tuple[float, float]:
    """Return the runs per hour, from when the last process had ended its first run to when the last run ended, and the
    seconds that the slowest process took to end its first.

    records: when each was written, and what it says; a process's first run has the phase of its start.
    count: processes that there should be.

    Raises UserError where one of them ended no run, and where no run ended after all their first ones.
    """
    firsts = [(time, record) for time, record in records if record["phases"].get(START)]
    start, end = max((time for time, _ in firsts), default=0.0), max((time for time, _ in records), default=0.0)
    later = sum(time > start for time, _ in records)
    if len(firsts) != count or not later:
        what = f"{len(records)} runs of {len(firsts)} processes say no rate of {count}"
        raise UserError(f"{what}; allowed: more, so that every process has two")
    return 3600 * later / (end - start), max(record["process_seconds"] for _, record in firsts)


def measure(
    recipe: Recipe, found: Sequence[Way], runs: int, rounds: int, device: str, tell: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Return for each way the runs per hour (`rates`) and the seconds to the first runs (`starts`), of each round;
    runs: of each process."""
    results: dict[str, dict[str, Any]] = {way.name: {"rates": [], "starts": []} for way in found}
    data = ["--dataset", "cifar10" if device == "cuda" else "synthetic", "--device", device]
    images = IMAGES[device].get(recipe.name, IMAGES[device]["large"])
    data += ["--train-size", str(images), "--eval-every", "0", "--checkpoint-every", "never"]
    threads = max(1, int(cores())) if device == "cpu" else None
    with tempfile.TemporaryDirectory(prefix="fastcifar-many-") as folder:
        file = Path(folder) / f"{recipe.name}.toml"
        file.write_text(to_toml(recipe), encoding="utf-8")
        for number in range(1, rounds + 1):
            for place, way in enumerate(found):
                out = Path(folder) / f"{place}-{number}"
                words = ["--recipe", str(file), *data, "--runs", str(runs * way.count), "--out", str(out), "--quiet"]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                done = subprocess.run(
                    way.command(words, threads), env=environment, cwd=folder, capture_output=True, text=True
                )
                if done.returncode:
                    raise UserError(f"{way.name} failed: {' '.join(done.stderr.split())[-300:]}")
                files = list(out.glob("seed-*/run.json"))
                records = [(path.stat().st_mtime, json.loads(path.read_text())) for path in files]
                each, start = rate(records, way.count)
                results[way.name]["rates"].append(each)
                results[way.name]["starts"].append(start)
                tell(f"{recipe.name}, {way.name}, round {number} of {rounds}: {each:,.0f} runs/hour")
    return results


def records(results: dict[str, dict[str, Any]], network: str, command: str) -> list[dict[str, object]]:
    """Return the results as `bench.record.append` takes them; network: its name."""
    first = results["one process"]["rates"]
    made = []
    for name, each in results.items():
        rates = each["rates"]
        ratio = statistics.median(ours / its for ours, its in zip(rates, first, strict=True))
        middle = statistics.median(rates)
        made.append(
            {
                "what": f"many runs of {_shown(network)} by {name}",
                "value": f"{middle:,.0f} runs/hour, {middle / 60:.1f} networks/minute, {ratio:.2f} of one process; "
                f"first runs after {statistics.median(each['starts']):.1f} s",
                "n": len(rates),
                "spread": f"{min(rates):,.0f} to {max(rates):,.0f}",
                "command": command,
                **each,
            }
        )
    return made


def _shown(network: str) -> str:
    return f"a {network} network" if network in IMAGES["cpu"] else network


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser("bench.many", __doc__ or "")
    parser.add_argument("--at-once", type=int, nargs="+", metavar="K", help="processes; else 2, on CUDA 2, 4 and 8")
    parser.add_argument(
        "--networks", nargs="+", default=["small", "large"], metavar="NAME", help="small, large, recipes"
    )
    parser.add_argument("--epochs", type=float, metavar="E", help="of a training, instead of the recipe's")
    parser.add_argument("--runs", type=int, metavar="N", help="of each process; else 6")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    add_save_option(parser)
    options = parser.parse_args(arguments)
    at_once = options.at_once or ([2] if options.device == "cpu" else [2, 4, 8])
    runs = 6 if options.runs is None else options.runs
    if min(at_once) < 2 or runs < 2 or options.rounds < 1:
        raise UserError("allowed: 2 or more at once, 2 or more runs, 1 or more rounds")
    command = f"python -m bench.many --device {options.device} --at-once {' '.join(map(str, at_once))} --runs {runs}"
    command += "" if options.epochs is None else f" --epochs {options.epochs:g}"
    found = ways(options.device, at_once)
    recipes = {network: recipe_of(network, options.device, options.epochs) for network in options.networks}
    for network, recipe in recipes.items():
        results = measure(recipe, found, runs, options.rounds, options.device)
        for record in records(results, network, command):
            show(record, options.save, options.device)
    return 0


if __name__ == "__main__":
    run_program("bench.many", main)
