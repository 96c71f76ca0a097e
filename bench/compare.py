"""Compare two saved runs of the benchmarks: each benchmark's ratio to the reference workload in one and the other.

    python -m bench.compare               # the last two saved by `make bench`
    python -m bench.compare NEW           # NEW against the last saved
    python -m bench.compare OLD NEW       # two files of pytest-benchmark's JSON

A stable benchmark that takes more than `--limit` times as long as it did is slower, and the exit code 1. Those marked
unstable are shown with the reason at the end and never fail, like those that only one of the runs has.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.program import new_parser, run_program
from fastcifar.errors import UserError

SAVED = Path(__file__).resolve().parent.parent / ".benchmarks"
"""The folder of pytest-benchmark: a folder for each system and Python, a file for each run, the runs numbered."""
_TURN = re.compile(r"\[turn\d+\]|-turn\d+|turn\d+-")  # the part of a benchmark's name that says which turn it was
_RENAMED = {
    r"bench/kernels/test_\w+\.py::test_(\w+?)(_forward_and_backward|_with_average)?\[": (
        r"bench/test_kernels.py::test_kernel[\1-"
    )
}
"""Patterns of names in older runs, and the names of now."""
LIMIT = 1.10  # twice what two runs in a row may differ by


@dataclass(frozen=True)
class Row:
    """One benchmark in two runs; `old` and `new` are its ratios to the reference, None where it did not run."""

    name: str
    old: float | None
    new: float | None
    spread: float  # half the range of the new run's turns, as a share of the ratio
    unstable: str | None  # the reason why the benchmark is not held to the limit; None: it is

    @property
    def change(self) -> float | None:
        """The factor by which the benchmark now takes longer."""
        return self.new / self.old if self.old and self.new else None

    def verdict(self, limit: float) -> str:
        if self.change is None:
            return "new" if self.old is None else "gone"
        if 1 / limit <= self.change <= limit:
            return "same"
        verdict = "slower" if self.change > limit else "faster"
        return f"{verdict} (unstable)" if self.unstable else verdict


def read_run(path: str | Path) -> dict[str, dict]:
    """Return name to `extra_info` of every benchmark in a file of pytest-benchmark's, its `ratio` the median of its
    turns and its `spread` half their range as a share of it. Raises UserError for another file."""
    run: dict[str, list[dict]] = {}
    try:
        for benchmark in json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]:
            run.setdefault(_name(benchmark["fullname"]), []).append(benchmark["extra_info"])
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"cannot read {path}: {why}; allowed: a file that make bench saved") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no file of pytest-benchmark's; allowed: one that make bench saved") from None
    for name, turns in run.items():
        if not all({"ratio", "spread", "unstable", "full"} <= turn.keys() for turn in turns):
            raise UserError(f"{path} has no ratio for {name}; allowed: a run of bench/")
    if not run:
        raise UserError(f"{path} has no benchmark in it; allowed: a run of bench/")
    return {name: _merged(turns) for name, turns in run.items()}


def _name(fullname: str) -> str:
    """Return a benchmark's name of now, without its turn."""
    name = _TURN.sub("", fullname)
    for pattern, now in _RENAMED.items():
        name = re.sub(pattern, now, name)
    return name


def _merged(turns: list[dict]) -> dict:
    if len(turns) == 1:
        return turns[0]
    ratios = [turn["ratio"] for turn in turns]
    ratio = statistics.median(ratios)
    return {**turns[0], "ratio": ratio, "spread": (max(ratios) - min(ratios)) / 2 / ratio}


def compare(old: dict[str, dict], new: dict[str, dict]) -> list[Row]:
    """Return a row for each benchmark, in the new run's order, then those that are gone. Raises UserError where the
    runs have nothing in common or were made at different sizes."""
    common = [name for name in new if name in old]
    if not common:
        raise UserError("the two runs have no benchmark in common; allowed: two runs of the same suites")
    for key, means in (("full", "of --full"), ("device", "of device"), ("reference", "beside the reference")):
        for name in common:
            was, is_now = old[name].get(key), new[name].get(key)
            if was != is_now:
                raise UserError(f"{name} was a run {means} {was} and is one {means} {is_now}; allowed: two runs alike")
    ratios = {name: info["ratio"] for name, info in old.items()}
    rows = [Row(name, ratios.get(name), info["ratio"], info["spread"], info["unstable"]) for name, info in new.items()]
    gone = [Row(name, info["ratio"], None, 0.0, info["unstable"]) for name, info in old.items() if name not in new]
    return rows + gone


def table(rows: Sequence[Row], limit: float) -> str:
    """Return the rows as text, then why some are unstable, then the largest change of the others."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'benchmark':{width}s}  {'old':>9s}  {'new':>9s}  {'change':>6s}  spread  verdict"]
    for row in rows:
        old, new = ("-" if ratio is None else f"{ratio:.4g}" for ratio in (row.old, row.new))
        change = "-" if row.change is None else f"{row.change:.3f}"
        columns = f"{old:>9s}  {new:>9s}  {change:>6s}  {row.spread:6.1%}  {row.verdict(limit)}"
        lines.append(f"{row.name:{width}s}  {columns}")
    for reason in dict.fromkeys(row.unstable for row in rows if row.unstable):
        lines.append(f"unstable: {', '.join(row.name for row in rows if row.unstable == reason)}: {reason}")
    stable = [row for row in rows if row.change and not row.unstable]
    if stable:
        worst = max(stable, key=lambda row: max(row.change, 1 / row.change))
        change = f"largest change of the {len(stable)} stable ones: {worst.change:.3f} ({worst.name})"
        lines.append(f"{change}; allowed: {limit:g}")
    return "\n".join(lines)


def saved_runs(folder: Path) -> list[Path]:
    """Return the runs that `make bench` saved, the oldest first."""
    return sorted(folder.glob("*/[0-9]*_*.json"), key=lambda path: path.stat().st_mtime_ns)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser("bench.compare", __doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--limit", type=float, default=LIMIT, help="the largest change allowed (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.limit <= 1:
        raise UserError(f"--limit is {options.limit:g}; allowed: above 1")
    if len(options.runs) > 2:
        raise UserError(f"{len(options.runs)} runs are given; allowed: at most 2")
    lacking = 2 - len(options.runs)
    given = {path.resolve() for path in options.runs}
    saved = [path for path in saved_runs(SAVED) if path.resolve() not in given][-lacking:] if lacking else []
    if len(saved) < lacking:
        raise UserError(f"{SAVED} holds {len(saved)} saved runs of the {lacking} needed; allowed: make bench saves one")
    old, new = [*saved, *options.runs]
    print(f"old: {old}\nnew: {new}")
    rows = compare(read_run(old), read_run(new))
    print(table(rows, options.limit))
    return int(any(row.verdict(options.limit) == "slower" for row in rows))


if __name__ == "__main__":
    run_program("bench.compare", main)
