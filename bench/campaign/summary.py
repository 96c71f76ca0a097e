"""The campaign's closing lines on the screen: at most 60, made from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.campaign import table
from bench.campaign.campaign import OUTCOMES, Line, read_records
from fastcifar.report.statistics import summarize
from fastcifar.report.tables import Table

MOST_LINES = 60


def summary(out: Path) -> list[str]:
    """Return lines for the screen: for each file in `out` a heading and its results, cut to `MOST_LINES`, which a last
    line says."""
    lines = []
    for name, show in _SHOWN.items():
        records = read_records(out / f"{name}.jsonl")
        if not records:
            continue
        results = [record for record in records if record["what"] not in OUTCOMES]
        lines.append(f"{name}: {len(results)} results in {name}.jsonl")
        lines += [f"  {line}" for line in (*show(results), *_failures(records))]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"... and {len(lines) - MOST_LINES + 1} lines more in the files"]
    return lines


def _rows(make: Callable[[list[Line]], Table]) -> Callable[[list[Line]], Iterator[str]]:
    """Return what makes a line of each row of a table."""

    def show(records: list[Line]) -> Iterator[str]:
        made = make(records)
        yield made.title
        for first, *cells in made.rows:
            yield f"{first}: " + ", ".join(map(" ".join, zip(made.columns[1:], cells, strict=True)))

    return show


def _failures(records: list[Line]) -> Iterator[str]:
    """Yield findings, and the parts that failed when they last had their turn."""
    for record in records:
        if record["what"] == "finding":
            yield f"finding, {record.get('recipe') or record['program']}: {record['found']}"
    last = {record["part"]: record for record in records if record["what"] in OUTCOMES}
    for part, record in last.items():
        if record["what"] == "failed":
            yield f"{part}: failed, {record['reason']}"


def _smoke(records: list[Line]) -> Iterator[str]:
    for recipe, runs in table.grouped(table.only(records, "training"), "recipe").items():
        first, phases = runs[0], runs[0]["phases"]
        took = ", ".join(f"{name} {phases[name]:.1f} s" for name in ("kernel compilation", "capture") if name in phases)
        captured = "captured" if first["captured"] else f"not captured ({first['not_captured']})"
        yield f"{recipe}: {captured}; {took}"
        yield f"  {_accuracy(runs)}; {_seconds(runs)}"


def _kernels(records: list[Line]) -> Iterator[str]:
    worst: dict[str, float] = {}
    for record in table.only(records, "error"):
        worst[record["operation"]] = max(worst.get(record["operation"], 0.0), record["worst"])
    if worst:
        yield "largest error against float64: " + ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    for operation, speeds in table.grouped(table.only(records, "speed"), "operation").items():
        told = []
        for variant, found in table.grouped(speeds, "variant").items():
            shares = [record["share_of_copy"] for record in found]
            told.append(f"{variant} {min(shares):.0%} to {max(shares):.0%} of the copy bandwidth (n={len(shares)})")
        yield f"{operation}: {', '.join(told)}"


def _steps(records: list[Line]) -> Iterator[str]:
    profiles = {(record["recipe"], record["stage"]): record for record in table.only(records, "profile")}
    for record in table.only(records, "step"):
        times = ", ".join(f"{way} {seconds * 1e3:.3f} ms" for way, seconds in record["seconds"].items())
        profile = profiles.get((record["recipe"], record["stage"]))
        busy = f"; by kernel {profile['ms']:.3f} ms in {profile['launches']:.0f} calls" if profile else ""
        yield f"{record['recipe']} at {record['size']} pixels ({record['steps']} steps): {times}{busy}"


def _trainings(records: list[Line]) -> Iterator[str]:
    for recipe, runs in table.grouped(table.only(records, "training"), "recipe").items():
        loss = statistics.fmean(run["tta_loss"] for run in runs)
        yield f"{recipe}: {_accuracy(runs)}, log-loss {loss:.4f}"
        yield f"  {_seconds(runs)}"


def _throughput(records: list[Line]) -> Iterator[str]:
    for recipe, sizes in table.grouped(table.only(records, "size"), "recipe").items():
        best, last = max(sizes, key=lambda size: size["images_per_second"]), sizes[-1]
        most = f"{last['memory'] / 2**30:.1f} GiB at {last['batch_size']:,}, the last that fitted"
        yield f"{recipe}: {best['images_per_second']:,.0f} images/s at batch size {best['batch_size']:,}; {most}"


def _tests(records: list[Line]) -> Iterator[str]:
    for record in table.only(records, "tests"):
        counts = ", ".join(f"{record[name]} {name}" for name in ("passed", "failed", "skipped"))
        yield f"{record['of']}: {counts}" + ("" if record["exit_code"] in (0, 1) else ", not all: ended before")


def _accuracy(runs: list[Line]) -> str:
    accuracy = summarize([run["tta_accuracy"] for run in runs])
    text = f"TTA accuracy {accuracy.mean:.2%}, n={accuracy.n}"
    if accuracy.interval:
        text += f", 95% interval {accuracy.interval[0]:.2%} to {accuracy.interval[1]:.2%}"
    return f"{text}; without {statistics.fmean(run['accuracy'] for run in runs):.2%}"


def _seconds(runs: list[Line]) -> str:
    """Return mean and spread of both clocks over all but the first runs of a process, over undisturbed ones if there
    are any; then over those first ones."""
    warm = [run for run in runs if not run["first_in_process"]]
    alone = table.undisturbed(runs)
    kind = "" if alone or not warm else " while another program compiled"
    told = ", ".join(f"{clock} {_mean(alone or warm, clock)}" for clock in table.CLOCKS) + kind if warm else ""
    first = ", ".join(f"{_mean([run for run in runs if run['first_in_process']], clock)}" for clock in table.CLOCKS)
    return f"{told}; first in a process {first}" if told else f"first in a process {first}"


def _mean(runs: list[Line], clock: str) -> str:
    seconds = table.known(runs, clock)
    return f"{table.mean(seconds)} (n={len(seconds)})" if seconds else "-"


_SHOWN: dict[str, Callable[[list[Line]], Iterator[str]]] = {
    "race": _rows(table.races_table),
    "smoke": _smoke,
    "tests": _tests,
    "trainings": _trainings,
    "ceilings": _rows(table.ceilings_table),
    "steps": _steps,
    "kernels": _kernels,
    "cold": _rows(table.cold_table),
    "sizes": _rows(table.sizes_table),
    "screen": _rows(table.screen_table),
    "throughput": _throughput,
}
"""The files in order of value, the first being the last to be cut."""
