"""Run a peer and ours in turn, and keep the outcome."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.peers.clocks import read_clocks
from bench.peers.programs import EQUAL, OURS, Program, get_program, missed
from bench.peers.worker import PeerError, Worker

Tell = Callable[[str], None]  # it is called with a line about each run or failure
SIDES = ("theirs", "ours")
Facts = dict[str, Any]


@dataclass
class Race:
    """One peer against ours."""

    peer: str
    recipe: str
    measured: str  # "training step", "whole training" or "cold start"
    rule: str = "own_seconds"  # in whole trainings: which of our stopwatches theirs is
    facts: dict[str, Facts] = field(default_factory=dict)  # `facts[side]`: those of its worker
    runs: dict[str, list[Facts]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """`runs[side][round]`: the worker's result, with the round's number and its clocks."""
    failures: list[dict[str, str]] = field(default_factory=list)  # each has a side, an error and its traceback

    def seconds(self, side: str) -> list[float]:
        """Return the seconds of each round: of the median step, per image; of the training, by the stopwatch that is
        theirs; or of the process."""
        if self.measured == "training step":
            batch_size = self.facts[side]["batch_size"] if side in self.facts else 1
            return [statistics.median(run["step_seconds"]) / batch_size for run in self.runs[side]]
        own = "process_seconds" if self.measured == "cold start" else "own_seconds"
        key = self.rule if side == "ours" and own == "own_seconds" else own
        return [run[key] for run in self.runs[side]]

    @property
    def missed(self) -> str:
        """In whole trainings what `programs.missed` says of theirs. Else ""."""
        if self.measured != "whole training":
            return ""
        return missed(self.peer, [run["accuracy"] for run in self.runs["theirs"]])

    def factors(self) -> list[float]:
        """Return how many times as fast ours is, in each round that both sides finished; none where `missed`."""
        if self.missed:
            return []
        theirs, ours = (
            dict(zip((run["round"] for run in self.runs[side]), self.seconds(side), strict=True)) for side in SIDES
        )
        return [theirs[number] / ours[number] for number in theirs if number in ours]

    def row(self) -> dict[str, str]:
        """Return the outcome as a line of a table, heading to cell."""
        factors = self.factors()
        failed = self.missed or (self.failures[0]["error"] if self.failures else "-")
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


@dataclass(frozen=True)
class Conditions:
    """The data, the device and the limits with which programs are run."""

    data: Path | str | None = None  # the images, as `Worker` takes them
    device: str = "cpu"
    steps: int | None = None  # training steps of a run; None: a whole training
    gap: float = 1.0  # idle seconds before each run, the same for all, so that none starts on a hotter chip
    cache: Path | None = None  # folder for what is compiled, as `Worker` takes it
    timeout: Callable[[], float | None] = lambda: None  # the seconds that the next run may take

    def start(self, name: str, checkout: Path | None) -> Worker:
        """Start a worker. Raises PeerError where it fails."""
        return Worker(name, checkout, self.data, self.device, self.cache, self.timeout())


@dataclass(frozen=True)
class Turn:
    """One run of one side, or its failure."""

    side: str
    round: int  # the round's number, which is also the run's seed; the first round's where a side cannot be loaded
    facts: Facts = field(default_factory=dict)  # the worker's; empty where a side cannot be loaded
    run: Facts | None = None  # the worker's result, with the round and the clocks; None: it failed
    error: PeerError | None = None


def take_turns(
    sides: Mapping[str, tuple[str, Path | None]], rounds: Sequence[int], conditions: Conditions, short: bool = False
) -> Iterator[Turn]:
    """Run programs in turn, each in a worker of its own, `sides[side]` being a worker's program and checkout.

    There is a round for each number in `rounds`. The first also compiles and loads: it is not for measuring, and with
    `short` it is one step. A side that fails is left out from then on. Closing the generator ends the workers.
    """
    workers: dict[str, Worker] = {}
    try:
        for side, program in sides.items():
            try:
                workers[side] = conditions.start(*program)
            except PeerError as error:
                yield Turn(side, rounds[0], error=error)
        for number in rounds:
            # Where steps are measured the first run is a short one; a whole training sees every shape.
            steps = 1 if (conditions.steps or short) and number == rounds[0] else conditions.steps
            for side, worker in list(workers.items()):
                time.sleep(conditions.gap)
                clocks = read_clocks(conditions.device)
                try:
                    result = worker.run(steps, seed=number, timeout=conditions.timeout())
                except PeerError as error:
                    workers.pop(side).close()
                    yield Turn(side, number, worker.facts, error=error)
                else:
                    yield Turn(side, number, worker.facts, {"round": number, "clocks": clocks, **result})
    finally:
        for worker in workers.values():
            worker.close()


def race(
    peer: str, checkouts: Path, conditions: Conditions, rounds: int = 5, tell: Tell = lambda line: None
) -> Iterator[Race]:
    """Run `peer` and our recipe of the same work in turn, as `take_turns` does, after one unmeasured run of each, and
    give the outcome as far as it is known, one object, after every measured run and failure.

    peer: its name in `PROGRAMS`.
    checkouts: the folder of the peers' checkouts.
    conditions: with `steps` that many training steps are timed; without, whole trainings, in which ours is the recipe
        with the same aim.
    rounds: how often.
    tell: is told of each run.
    """
    program = get_program(peer)
    whole = conditions.steps is None and program.rival is not None
    steps = conditions.steps or (None if whole else program.stops_after)
    recipe = program.rival if whole else _equal(program)
    outcome = Race(peer, Path(recipe).stem, "whole training" if whole else "training step", program.rule)
    sides, short = _sides(peer, recipe, checkouts), conditions.device == "cpu"  # where nothing is compiled
    for turn in take_turns(sides, range(rounds + 1), replace(conditions, steps=steps), short):
        if turn.facts:
            outcome.facts[turn.side] = turn.facts
        if turn.error:
            _failed(outcome, turn.side, turn.error, tell)
        elif turn.round:
            outcome.runs[turn.side].append(turn.run)
            tell(f"{peer}, {turn.side}, round {turn.round} of {rounds}: {_shown(turn.run)}")
        else:
            continue
        yield outcome


def start_cold(name: str, checkout: Path | None, conditions: Conditions) -> tuple[Facts, Facts]:
    """Run a program once in a fresh process with empty caches. Raises PeerError where it fails.

    Returns the worker's facts, and its result with the clocks before and `process_seconds`, from the process's start to
    the end of the run.
    """
    clocks = read_clocks(conditions.device)
    with (
        tempfile.TemporaryDirectory(prefix="fastcifar-cold-") as cache,
        replace(conditions, cache=Path(cache)).start(name, checkout) as worker,
    ):
        result = worker.run(conditions.steps, timeout=conditions.timeout())
        seconds = time.perf_counter() - worker.started
    return worker.facts, {"clocks": clocks, **result, "process_seconds": seconds}


def cold(
    peer: str, checkouts: Path, conditions: Conditions, rounds: int = 1, tell: Tell = lambda line: None
) -> Iterator[Race]:
    """Start `peer` and our recipe with the same aim cold, in turn, as `start_cold` does; the rest as of `race`.

    The warm-up run that their programs make before is left out, which is to their advantage.
    """
    program = get_program(peer)
    recipe = program.rival or _equal(program)
    outcome = Race(peer, Path(recipe).stem, "cold start")
    for number in range(1, rounds + 1):
        for side, started in _sides(peer, recipe, checkouts).items():
            try:
                outcome.facts[side], run = start_cold(*started, conditions)
            except PeerError as error:
                _failed(outcome, side, error, tell)
            else:
                outcome.runs[side].append({"round": number, **run})
                tell(f"{peer}, {side}, cold start {number} of {rounds}: {run['process_seconds']:.1f} s")
            yield outcome


def table(races: Sequence[Race]) -> str:
    """Return the outcomes as aligned lines of text."""
    rows = [race.row() for race in races]
    lines = [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _equal(program: Program) -> str:
    return str(EQUAL / f"{program.equal}.toml")


def _sides(peer: str, recipe: str, checkouts: Path) -> dict[str, tuple[str, Path | None]]:
    return {"theirs": (peer, checkouts / get_program(peer).checkout), "ours": (OURS + recipe, None)}


def _failed(outcome: Race, side: str, error: PeerError, tell: Tell) -> None:
    outcome.failures.append({"side": side, "error": str(error), "traceback": error.traceback})
    tell(f"{outcome.peer}, {side}: {error}")


def _shown(result: Facts) -> str:
    if result["step_seconds"]:
        return f"{statistics.median(result['step_seconds']):.3g} s a step, the median of {len(result['step_seconds'])}"
    accuracy = result["accuracy"]
    return f"{result['own_seconds']:.2f} s" + ("" if accuracy is None else f", {accuracy:.2%}")
