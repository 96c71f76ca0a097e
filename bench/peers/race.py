"""A peer and ours in turn, and what came of it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.clocks import read_clocks
from bench.peers.programs import EQUAL, OURS, Program, get_program
from bench.peers.worker import PeerError, Worker

Tell = Callable[[str], None]
"""Called with a line about each run, or failure, as soon as there is one."""
SIDES = ("theirs", "ours")


@dataclass
class Race:
    """One peer against ours. For each side: `facts` of its worker, and `runs`, the worker's results, a round each, with
    the round's number and its clocks. `failures` have a side, an error and its traceback."""

    peer: str
    recipe: str
    measured: str
    """"training step", "whole training" or "cold start"."""
    rule: str = "own_seconds"
    """Of whole trainings, which of our times is theirs."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {side: [] for side in SIDES})
    failures: list[dict[str, str]] = field(default_factory=list)

    def seconds(self, side: str) -> list[float]:
        """Of each round: the median step, for each image of it; or the training, by the stopwatch that is theirs; or
        the process."""
        if self.measured == "training step":
            batch_size = self.facts[side]["batch_size"] if side in self.facts else 1
            return [statistics.median(run["step_seconds"]) / batch_size for run in self.runs[side]]
        own = "process_seconds" if self.measured == "cold start" else "own_seconds"
        key = self.rule if side == "ours" and own == "own_seconds" else own
        return [run[key] for run in self.runs[side]]

    def factors(self) -> list[float]:
        """How many times as fast ours is, in each round that both sides finished."""
        times = zip(*(self.seconds(side) for side in SIDES), strict=False)
        return [theirs / ours for theirs, ours in times]

    def row(self) -> dict[str, str]:
        """The outcome as a line of a table, heading to cell."""
        factors = self.factors()
        failed = self.failures[0]["error"] if self.failures else "-"
        return {
            "program": self.peer,
            "measured": self.measured,
            "theirs": self._cell("theirs"),
            "ours": self._cell("ours"),
            "our factor": f"{statistics.median(factors):.2f}" if factors else "-",
            "n": str(len(factors)),
            "spread": f"{min(factors):.2f} to {max(factors):.2f}" if factors else failed,
        }

    def _cell(self, side: str) -> str:
        seconds = self.seconds(side)
        if not seconds:
            return "-"
        middle, facts = statistics.median(seconds), self.facts[side]
        if self.measured == "training step":
            return f"{1 / middle:.4g} images/s (batch {facts['batch_size']}, {facts['dtype']})"
        found = [run["accuracy"] for run in self.runs[side] if run["accuracy"] is not None]
        accuracy = f", {statistics.mean(found):.2%}" if found else ""
        return f"{middle:.2f} s{accuracy} ({facts['dtype']})"


def race(
    peer: str,
    checkouts: Path,
    data: Path | str | None = None,
    device: str = "cpu",
    *,
    steps: int | None = None,
    rounds: int = 5,
    gap: float = 1.0,
    cache: Path | None = None,
    timeout: float | None = None,
    tell: Tell = lambda line: None,
) -> Race:
    """Run `peer` and our recipe of the same work in turn, `rounds` times after one unmeasured run of each, `gap` idle
    seconds before each run. With `steps` that many training steps; without, whole trainings, in which ours is the
    recipe with the same aim. A side that fails is left out from then on."""
    program = get_program(peer)
    whole = steps is None and program.rival is not None
    steps = steps or (None if whole else program.stops_after)
    recipe = program.rival if whole else str(EQUAL / f"{program.equal}.toml")
    outcome = Race(peer, Path(recipe).stem, "whole training" if whole else "training step", program.rule)
    workers: dict[str, Worker] = {}

    def attempt(side: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except PeerError as error:
            _failed(outcome, side, error, tell)
            if side in workers:
                workers.pop(side).close()
            return None

    try:
        for side in SIDES:
            name, checkout = _program(side, program, peer, recipe, checkouts)
            worker = attempt(side, lambda n=name, c=checkout: Worker(n, c, data, device, cache, timeout))
            if worker:
                workers[side], outcome.facts[side] = worker, worker.facts
        for number in range(rounds + 1):
            for side in list(workers):
                time.sleep(gap)
                clocks = read_clocks(device)
                run = workers[side].run
                # The unmeasured run is a short one where steps are measured; a whole training sees every shape.
                count = steps if number or steps is None else 1
                result = attempt(side, lambda r=run, c=count, n=number: r(c, seed=n, timeout=timeout))
                if result and number:
                    outcome.runs[side].append({"round": number, "clocks": clocks, **result})
                    tell(f"{peer}, {side}, round {number} of {rounds}: {_shown(result)}")
    finally:
        for worker in workers.values():
            worker.close()
    return outcome


def cold(
    peer: str,
    checkouts: Path,
    data: Path | str | None = None,
    device: str = "cpu",
    *,
    steps: int | None = None,
    rounds: int = 1,
    timeout: float | None = None,
    tell: Tell = lambda line: None,
) -> Race:
    """`process_seconds` of the peer and of our recipe with the same aim, in turn: a fresh process with empty caches,
    from its start to the end of its first finished run. Without the warm-up run that their programs make before, which
    is to their advantage."""
    program = get_program(peer)
    recipe = program.rival or str(EQUAL / f"{program.equal}.toml")
    outcome = Race(peer, Path(recipe).stem, "cold start")
    for number in range(1, rounds + 1):
        for side in SIDES:
            name, checkout = _program(side, program, peer, recipe, checkouts)
            clocks = read_clocks(device)
            with tempfile.TemporaryDirectory(prefix="fastcifar-cold-") as cache:
                try:
                    with Worker(name, checkout, data, device, Path(cache), timeout) as worker:
                        result = worker.run(steps, timeout=timeout)
                        result["process_seconds"] = time.perf_counter() - worker.started
                except PeerError as error:
                    _failed(outcome, side, error, tell)
                    continue
            outcome.facts[side] = worker.facts
            outcome.runs[side].append({"round": number, "clocks": clocks, **result})
            tell(f"{peer}, {side}, cold start {number} of {rounds}: {result['process_seconds']:.1f} s")
    return outcome


def table(races: Sequence[Race]) -> str:
    """The outcomes as aligned lines of text."""
    rows = [race.row() for race in races]
    lines = [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _program(side: str, program: Program, peer: str, recipe: str, checkouts: Path) -> tuple[str, Path | None]:
    return (peer, checkouts / program.checkout) if side == "theirs" else (f"{OURS}{recipe}", None)


def _failed(outcome: Race, side: str, error: PeerError, tell: Tell) -> None:
    outcome.failures.append({"side": side, "error": str(error), "traceback": error.traceback})
    tell(f"{outcome.peer}, {side}: {error}")


def _shown(result: dict[str, Any]) -> str:
    if result["step_seconds"]:
        return f"{statistics.median(result['step_seconds']):.3g} s a step, the median of {len(result['step_seconds'])}"
    accuracy = result["accuracy"]
    return f"{result['own_seconds']:.2f} s" + ("" if accuracy is None else f", {accuracy:.2%}")
