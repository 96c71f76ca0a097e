"""What runs say together, as lines, as a table and as data."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

from fastcifar.escape import shown
from fastcifar.record import RunRecord
from fastcifar.report.runs import METRICS, NUMBERS, STOPWATCHES, AtTarget, KeptRuns, Runs
from fastcifar.report.statistics import Summary
from fastcifar.report.tables import Table, percent

SUMMARIZED = ("accuracy", "tta_accuracy", "val_accuracy", *STOPWATCHES)
"""Keys of run.json, in the order in which they are summarized."""
_SMALLEST = 1e-4
"""The smallest chance that is written without an exponent."""
_DIFFERENCES = 3
"""The most differences between runs of one name that a line shows."""
_LONGEST = 60
"""The most characters of a name or a value in a table."""
_LONGEST_UNIQUE = 52
"""The most characters of a name that tells groups apart, before its number: a legend adds a few."""


def times_of(records: Sequence[RunRecord]) -> list[str]:
    """Return a line where the times of these runs are of several devices, and one where of other numbers of threads."""
    lines = []
    devices = sorted({record.device.name for record in records})
    if len(devices) > 1:
        lines.append(f"times are of several devices: {', '.join(shown(name, _LONGEST) for name in devices)}")
    threads = sorted({record.device.threads or 0 for record in records if record.device.type == "cpu"} - {0})
    if len(threads) > 1:
        lines.append(f"times are with {', '.join(map(str, threads[:-1]))} and {threads[-1]} threads")
    return lines


def summary_lines(runs: Runs, target: float | None = None, metric: str = METRICS[0]) -> list[str]:
    """Return lines with mean, standard deviation, n, 95% interval, least and largest of accuracies and stopwatches;
    with `target`, how `metric` compares with it; and how many runs failed.

    metric: a key of run.json, of `METRICS`, or "precision" or "recall"; it has a line in any case.
    """
    rows: list[tuple[str, ...]] = [("", "mean", "std dev", "n", "95% interval", "min", "max")]
    for key in dict.fromkeys((metric, *SUMMARIZED) if metric not in SUMMARIZED else SUMMARIZED):
        values = runs.summary(key)
        if values is not None:
            name = key.removesuffix("_seconds").replace("_", " ")
            mean, std, *others = _cells(key, values, runs.values(key))
            rows.append((name, mean, std, str(values.n), *others))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [f"{'<' if column in (0, 4) else '>'}{width}" for column, width in enumerate(widths)]
    lines = ["  ".join(map(format, row, aligned)).rstrip() for row in rows]
    lines += times_of(runs.records)
    if runs.failed:
        first = runs.failed[0]
        failed = f"{len(runs.failed)} run{'s' * (len(runs.failed) > 1)} failed"
        lines.append(f"{failed}, which are in no other number (seed {first.seed}: {shown(first.reason, 200)})")
    if target is None:
        return lines
    at_target = runs.at_target(target, metric)
    nothing = [f"no run has {metric.replace('_', ' ')}, so nothing is compared with {_target(target)}"]
    return lines + (nothing if at_target is None else target_lines(at_target))


def target_lines(found: AtTarget) -> list[str]:
    """Return the share of runs at a target or above, and whether their mean is seen to be above it."""
    target, (low, high), test = _target(found.target), found.interval, found.test
    lines = [
        f"at {target} or above: {found.reached} of {found.n} runs, {found.share:.1%} "
        f"(95% interval {low:.1%} to {high:.1%}, Clopper-Pearson)"
    ]
    if test is None:
        return [*lines, f"mean above {target}: no test, which needs two runs or more that are not all equal"]
    how = f"one-sided t-test, t = {test.t:.3f}, {test.df} degree{'s' * (test.df > 1)} of freedom"
    return [*lines, f"mean above {target}: p = {chance(test.p)} ({how}, against a true mean of {target} or less)"]


def summary_tables(groups: Sequence[Runs], target: float | None = None, metric: str = METRICS[0]) -> list[Table]:
    """Return a table with a row for each of several `Runs`: `metric` and the means of the stopwatches; with `target`
    also one of how they compare with it."""
    rows, compared = [], []
    for name, runs in zip(row_names(groups), groups, strict=True):
        summary = runs.summary(metric)
        cells = ["-"] * 4
        if summary is not None:
            _, std, _, least, most = _cells(metric, summary, runs.values(metric))
            cells = [percent(summary), std, least, most]
        times = (runs.summary(key) for key in STOPWATCHES)
        seconds = ("-" if time is None else f"{time.mean:.2f} s" for time in times)
        rows.append((name, str(len(runs.records)), str(len(runs.failed)), *cells, *seconds))
        found = None if target is None else runs.at_target(target, metric)
        if found:
            low, high = found.interval
            test = ("-", "-") if found.test is None else (f"{found.test.t:.3f}", chance(found.test.p))
            share = f"{found.share:.1%}", f"{low:.1%} to {high:.1%}"
            compared.append((name, f"{found.reached} of {found.n}", *share, *test))
    stopwatches = (key.removesuffix("_seconds") for key in STOPWATCHES)
    heads = ("", "n", "failed", metric.replace("_", " "), "std dev", "min", "max", *stopwatches)
    tables = [Table("Runs that belong together, and ± 95% interval of their mean", heads, tuple(rows))]
    if target is not None:
        title = f"Share at {_target(target)} or above (95% Clopper-Pearson), and t-test of the mean"
        tables.append(Table(title, ("", "runs", "share", "95% interval", "t", "p"), tuple(compared)))
    return tables


def row_name(runs: Runs, most: int = _DIFFERENCES) -> str:
    """Return the name of `runs` with what sets them apart from others of that name, of which `most` are told."""
    first = list(runs.differs.items())[:most]
    words = [f"{shown(name.removeprefix('recipe.'), _LONGEST)} {shown(value, _LONGEST)}" for name, value in first]
    more = len(runs.differs) - len(words)
    words += [f"and {more} more difference{'s' * (more > 1)}"] if more else []
    return ", ".join([shown(runs.name, _LONGEST), *words])


def row_names(groups: Sequence[Runs]) -> list[str]:
    """Return a name for each of `groups` that no other has, short enough for a legend: `row_name`, with fewer
    differences or cut where it is long, and with a number where it would be that of several."""
    names = list(map(_short_name, groups))
    counts = Counter(names)
    taken, found = {name for name in names if counts[name] == 1}, []
    for name in names:
        if counts[name] > 1:
            name = next(each for number in count(1) if (each := f"{name} #{number}") not in taken)
            taken.add(name)
        found.append(name)
    return found


def _short_name(runs: Runs) -> str:
    names = [row_name(runs, most) for most in range(_DIFFERENCES, -1, -1)]
    return next((name for name in names if len(name) <= _LONGEST_UNIQUE), shown(names[-1], _LONGEST_UNIQUE))


def heading(runs: Runs) -> str:
    """Return which runs these are, on which data, and n."""
    on = f" on {data_words(runs.records[0])}" if runs.records else ""
    return f"{row_name(runs)}{on}, n={len(runs.records)}"


def data_words(record: RunRecord) -> str:
    """Return which images a run was trained on: "cifar10, 50,000 training images"."""
    data = record.dataset
    words = [shown(data.title, _LONGEST), f"{data.train_size:,} training images"]
    words += [f"resized to {data.resized} pixels"] if data.resized else []
    words += [f"fold {data.fold}" if data.fold else f"{data.holdout:,} held out"] if data.holdout else []
    return ", ".join(words)


def summary_data(kept: KeptRuns, target: float | None = None, metric: str = METRICS[0]) -> dict[str, Any]:
    """Return all of it as data with the keys of run.json, ready for JSON."""
    return {
        "metric": metric,
        "target": target,
        "groups": [_group_data(runs, target, metric) for runs in kept.groups],
        "unreadable": kept.unreadable,
        "unfinished": kept.unfinished,
    }


def _group_data(runs: Runs, target: float | None, metric: str) -> dict[str, Any]:
    record = runs.records[0].to_json() if runs.records else {}
    same = ("recipe", "dataset", "subset", "init", "network", "device", "dtype", "versions")
    at_target = None if target is None else runs.at_target(target, metric)
    return {
        "name": runs.name,
        "n": len(runs.records),
        "failed": len(runs.failed),
        "seeds": [record.seed for record in runs.records],
        "failures": [dataclasses.asdict(each) for each in runs.failed],
        "differs": dict(runs.differs),
        **{key: record.get(key) for key in same},
        **{key: _number_data(runs, key) for key in (*METRICS, *NUMBERS)},
        "at_target": None if at_target is None else dataclasses.asdict(at_target),
    }


def _number_data(runs: Runs, key: str) -> dict[str, Any] | None:
    values, summary = runs.values(key), runs.summary(key)
    return None if summary is None else {**dataclasses.asdict(summary), "min": min(values), "max": max(values)}


def _cells(key: str, summary: Summary, values: Sequence[float]) -> tuple[str, str, str, str, str]:
    """Return mean, standard deviation, interval, least and largest value."""
    show = "{:.2f} s".format if key in STOPWATCHES else _percent
    std = "-" if summary.std is None else show(summary.std)
    interval = "none" if summary.interval is None else " to ".join(map(show, summary.interval))
    return show(summary.mean), std, interval, show(min(values)), show(max(values))


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _target(value: float) -> str:
    return f"{100 * value:.6g}%"


def chance(p: float) -> str:
    """Return a chance to two figures or more: "0.0312", "3.1e-09"."""
    return f"{p:.4f}" if p >= _SMALLEST else f"{p:.1e}"
