"""The campaign's closing table: at most 60 lines, made from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.campaign.campaign import OUTCOMES, Line, read_records
from bench.peers.race import SIDES
from fastcifar.report.statistics import summarize

MOST_LINES = 60
CLOCKS = {"time_seconds": "with the final evaluation", "train_seconds": "without the final evaluation"}


def summary(out: Path) -> list[str]:
    """Lines for the screen: of each file in `out` a heading and what it holds, cut to `MOST_LINES`, which a last line
    says."""
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


def _failures(records: list[Line]) -> Iterator[str]:
    """Findings, and the parts that failed when they last had their turn."""
    for record in records:
        if record["what"] == "finding":
            yield f"finding, {record.get('recipe') or record['program']}: {record['found']}"
    last = {record["part"]: record for record in records if record["what"] in OUTCOMES}
    for part, record in last.items():
        if record["what"] == "failed":
            yield f"{part}: failed, {record['reason']}"


def _smoke(records: list[Line]) -> Iterator[str]:
    for recipe, runs in grouped(only(records, "training"), "recipe").items():
        first, phases = runs[0], runs[0]["phases"]
        took = ", ".join(f"{name} {phases[name]:.1f} s" for name in ("kernel compilation", "capture") if name in phases)
        captured = "captured" if first["captured"] else f"not captured ({first['not_captured']})"
        yield f"{recipe}: {captured}; {took}"
        yield f"  {_accuracy(runs)}; {_seconds(runs)}"


def _kernels(records: list[Line]) -> Iterator[str]:
    worst: dict[str, float] = {}
    for record in only(records, "error"):
        worst[record["operation"]] = max(worst.get(record["operation"], 0.0), record["worst"])
    if worst:
        yield "largest error against float64: " + ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    for operation, speeds in grouped(only(records, "speed"), "operation").items():
        told = []
        for variant, found in grouped(speeds, "variant").items():
            shares = [record["share_of_copy"] for record in found]
            told.append(f"{variant} {min(shares):.0%} to {max(shares):.0%} of the copy bandwidth (n={len(shares)})")
        yield f"{operation}: {', '.join(told)}"


def _ceilings(records: list[Line]) -> Iterator[str]:
    for record in records:
        if record["what"] == "environment":
            yield f"{record['device'].get('name')}, torch {record['torch']}, triton {record.get('triton')}"
        elif record["what"] == "copy":
            yield f"copy {record['rate'] / 1e9:.0f} GB/s"
        elif record["what"] == "product":
            yield f"{record['dtype']} product {record['rate'] / 1e12:.2f} TFLOP/s"
        elif record["what"] == "convolutions":
            seconds, flop = convolution_totals(record)
            yield f"{_stage(record)}: convolutions {seconds * 1e3:.3f} ms a step, {flop / seconds / 1e12:.2f} TFLOP/s"


def _steps(records: list[Line]) -> Iterator[str]:
    profiles = {(record["recipe"], record["stage"]): record for record in only(records, "profile")}
    for record in only(records, "step"):
        times = ", ".join(f"{way} {seconds * 1e3:.3f} ms" for way, seconds in record["seconds"].items())
        profile = profiles.get((record["recipe"], record["stage"]))
        busy = f"; by kernel {profile['ms']:.3f} ms in {profile['launches']:.0f} calls" if profile else ""
        yield f"{_stage(record)}: {times}{busy}"


def _trainings(records: list[Line]) -> Iterator[str]:
    for recipe, runs in grouped(only(records, "training"), "recipe").items():
        loss = statistics.fmean(run["tta_loss"] for run in runs)
        yield f"{recipe}: {_accuracy(runs)}, log-loss {loss:.4f}"
        yield f"  {_seconds(runs)}"


def _race(records: list[Line]) -> Iterator[str]:
    for rival, runs in grouped(only(records, "run"), "rival").items():
        sides = grouped([run for run in runs if not run["warm_up"]], "side")
        if len(sides) < len(SIDES):
            continue
        for side in SIDES:
            accuracies = [run["accuracy"] for run in sides[side] if run["accuracy"] is not None]
            accuracy = f", accuracy {statistics.fmean(accuracies):.2%} (n={len(accuracies)})" if accuracies else ""
            seconds = ", ".join(f"{clock} {_mean(sides[side], clock)}" for clock in CLOCKS)
            yield f"{rival}, {side}: {seconds}{accuracy}"
        for clock, words in CLOCKS.items():
            ratios = ratios_of(sides, clock)
            if ratios:
                spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
                yield f"  ours takes {statistics.median(ratios):.3f} of theirs {words}, n={len(ratios)}, {spread}"


def ratios_of(sides: dict[str, list[Line]], clock: str) -> list[float]:
    """Our seconds by theirs in each round in which both are known."""
    theirs, ours = ({run["round"]: run.get(clock) for run in sides[side]} for side in SIDES)
    return [ours[number] / theirs[number] for number in theirs if theirs[number] and ours.get(number)]


def _cold(records: list[Line]) -> Iterator[str]:
    for record in only(records, "cold"):
        yield f"{record['program']}: {record['process_seconds']:.1f} s from process start to the first accuracy"


def _sizes(records: list[Line]) -> Iterator[str]:
    """Of each operator what a step of all forms would take with the best sizes for all, and with those of now."""
    for operation, found in grouped(only(records, "sizes"), "operation").items():
        now, totals = totals_by_sizes(found)
        best = min(totals, key=totals.__getitem__)
        yield f"{operation}: {totals[now] * 1e6:.1f} us now, {totals[best] * 1e6:.1f} us with {best}"


def totals_by_sizes(found: list[Line]) -> tuple[str, dict[str, float]]:
    """Of an operator's records the sizes that there were, and by sizes the seconds of all forms: of those sizes that as
    many were measured with as with the former."""
    seconds = grouped([{**record, "words": words_of(record["sizes"])} for record in found], "words")
    now = next(words for words, records in seconds.items() if records[0]["now"])
    totals = {
        words: sum(record["seconds"] * sum(record["places"].values()) for record in records)
        for words, records in seconds.items()
        if len(records) == len(seconds[now])
    }
    return now, totals


def words_of(sizes: Line) -> str:
    """What an operator was launched with, in a line."""
    told = {name: value if isinstance(value, dict) else {"": value} for name, value in sizes.items()}
    return ", ".join(
        f"{name}: " + " ".join(f"{key} {one}".strip() for key, one in v.items()) for name, v in told.items()
    )


def _tests(records: list[Line]) -> Iterator[str]:
    for record in only(records, "tests"):
        counts = ", ".join(f"{record[name]} {name}" for name in ("passed", "failed", "skipped"))
        yield f"{record['of']}: {counts}" + ("" if record["exit_code"] in (0, 1) else ", not all: ended before")


def convolution_totals(record: Line) -> tuple[float, float]:
    """Seconds and FLOP of all passes of a stage's convolutions."""
    seconds = sum(sum(layer["seconds"].values()) for layer in record["layers"])
    return seconds, sum(layer["flop"] * len(layer["seconds"]) for layer in record["layers"])


def undisturbed(runs: list[Line]) -> list[Line]:
    """The trainings that had nothing beside them, without the first ones of a process."""
    return [run for run in runs if not run["first_in_process"] and "beside" not in run]


def only(records: list[Line], what: str) -> list[Line]:
    return [record for record in records if record["what"] == what]


def grouped(records: list[Line], key: str) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for record in records:
        groups.setdefault(record[key], []).append(record)
    return groups


def _stage(record: Line) -> str:
    return f"{record['recipe']} at {record['size']} pixels ({record['steps']} steps)"


def _accuracy(runs: list[Line]) -> str:
    accuracy = summarize([run["tta_accuracy"] for run in runs])
    text = f"TTA accuracy {accuracy.mean:.2%}, n={accuracy.n}"
    if accuracy.interval:
        text += f", 95% interval {accuracy.interval[0]:.2%} to {accuracy.interval[1]:.2%}"
    return f"{text}; without {statistics.fmean(run['accuracy'] for run in runs):.2%}"


def _seconds(runs: list[Line]) -> str:
    """Of both clocks the mean and spread of all but the first runs of a process, undisturbed ones if there are any;
    then those first ones."""
    warm = [run for run in runs if not run["first_in_process"]]
    alone = undisturbed(runs)
    kind = "" if alone or not warm else " while another program compiled"
    told = ", ".join(f"{clock} {_mean(alone or warm, clock)}" for clock in CLOCKS) + kind if warm else ""
    first = ", ".join(f"{_mean([run for run in runs if run['first_in_process']], clock)}" for clock in CLOCKS)
    return f"{told}; first in a process {first}" if told else f"first in a process {first}"


def _mean(runs: list[Line], clock: str) -> str:
    seconds = [run[clock] for run in runs if run.get(clock) is not None]
    if not seconds:
        return "-"
    found = summarize(seconds)
    return f"{found.mean:.3f} s" + ("" if found.std is None else f" ± {found.std:.3f} (n={found.n})")


_SHOWN: dict[str, Callable[[list[Line]], Iterator[str]]] = {
    "race": _race,
    "smoke": _smoke,
    "tests": _tests,
    "trainings": _trainings,
    "ceilings": _ceilings,
    "steps": _steps,
    "kernels": _kernels,
    "cold": _cold,
    "sizes": _sizes,
}
"""The files in order of value, the first being the last to be cut."""
