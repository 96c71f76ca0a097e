"""Figures of runs, from their records alone: what was reached and lost by epoch and by second, how long an accuracy
took, and how final accuracies spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from fastcifar.record import EpochRow, RunRecord
from fastcifar.report.figures import Figure, Line
from fastcifar.report.runs import Runs
from fastcifar.report.statistics import summarize
from fastcifar.report.summary import data_words, row_name

_MOST_FAINT = 10
"""A line for each run is drawn where there are at most so many, in all."""
_FEWEST = 5
"""Runs of which there is a histogram."""
_NAMED = 3
"""Names, data sets and machines that a title says; of more it says how many."""
_STEPS = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)
"""Between the accuracies, in percent, of which it is drawn how long they took: the first by which there are enough."""
_ENOUGH = 5
_SPEEDRUN = 94.0
"""The accuracy, in percent, that speed records are told for."""
_SPLITS = {"test": "test", "val": "validation", "train": "training"}


@dataclass(frozen=True)
class _Group:
    """Runs that are drawn in one color."""

    name: str
    """With n."""
    color: int
    records: tuple[RunRecord, ...]


def run_figures(groups: Sequence[Runs]) -> dict[str, Figure]:
    """Return the figures of runs, those of each group in a color of its own, by the stems of their files and in the
    order in which they are shown: accuracy, losses and learning rate by epoch and by the training stopwatch, the time
    to accuracies, and, where a group has 5 runs or more, their histogram.

    Lines are means and bands their 95% intervals. What no record has, as test accuracies where images have no labels,
    is not drawn; without a finished run there is no figure.
    """
    kept = [runs for runs in groups if runs.records]
    drawn = [_Group(f"{row_name(runs)}, n={len(runs.records)}", color, runs.records) for color, runs in enumerate(kept)]
    figures: dict[str, Figure] = {}
    for stem, by in (("epoch", "epoch"), ("seconds", "train_seconds [s]")):
        figures[f"accuracy-by-{stem}"] = _curves(drawn, "accuracy", ("test", "val"), stem, by)
        figures[f"loss-by-{stem}"] = _curves(drawn, "loss", ("test", "val", "train"), stem, by)
        figures[f"learning-rate-by-{stem}"] = _learning_rates(drawn, stem, by)
    figures["time-to-accuracy"] = _times(drawn)
    figures["accuracies"] = _histogram([group for group in drawn if len(group.records) >= _FEWEST])
    order = sorted(figures, key=lambda stem: stem.startswith("learning-rate"))
    return {stem: figures[stem] for stem in order if figures[stem].lines}


def _curves(groups: Sequence[_Group], measure: str, splits: Sequence[str], stem: str, by: str) -> Figure:
    """Return accuracies in percent or losses of each split that has any, by epoch or by seconds."""
    factor, unit = (100, "%") if measure == "accuracy" else (1, "nats")
    records = [record for group in groups for record in group.records]
    splits = [split for split in splits if any(_points(records, f"{split}_{measure}"))]
    lines: list[Line] = []
    for group in groups:
        for dash, split in enumerate(splits):
            name = _split_name(split, records) if len(groups) == 1 else "" if dash else group.name
            found = list(_mean_rows(group.records, lambda row, of=f"{split}_{measure}": getattr(row, of), stem))
            if not dash and 1 < len(records) <= _MOST_FAINT:
                lines += _faint(group, f"{split}_{measure}", stem, factor)
            if found:
                x, means, bands = zip(*found, strict=True)
                band = [(factor * low, factor * high) for low, high in filter(None, bands)]
                y = [factor * mean for mean in means]
                lines.append(Line(x, y, group.color, name, band=band if len(band) == len(y) else (), dash=dash))
    words = [_split_name(split, records) for split in splits]
    label = measure if len(words) != 1 else f"{words[0]} {measure}"
    which = ", ".join(f"{style}: {word}" for style, word in zip(("solid", "dashed", "dotted"), words, strict=False))
    what = f"{measure.capitalize()} by {stem}" + (f" ({which})" if len(words) > 1 and len(groups) > 1 else "")
    return Figure(by, f"{label} [{unit}]", tuple(lines), title=_title(what, groups))


def _learning_rates(groups: Sequence[_Group], stem: str, by: str) -> Figure:
    lines = []
    for group in groups:
        found = list(_mean_rows(group.records, lambda row: row.learning_rate, stem))
        if found:
            x, means, _ = zip(*found, strict=True)
            lines.append(Line(x, means, group.color, group.name if len(groups) > 1 else ""))
    what = f"Learning rate of the last step of each epoch, by {stem}"
    return Figure(by, "learning rate", tuple(lines), title=_title(what, groups))


def _times(groups: Sequence[_Group]) -> Figure:
    """Return the seconds of training at which each group was first seen at accuracies, and those to its end."""
    records = [record for group in groups for record in group.records]
    reached = [[100 * y for _, y in _points([record], _tested(record))] for record in records]
    reached = [accuracies for accuracies in reached if accuracies]
    targets = _targets(min(map(min, reached)), max(map(max, reached))) if reached else []
    lines = []
    for group in groups:
        label = group.name if len(groups) > 1 else "first epoch at this accuracy or above"
        x, y, intervals = [], [], []
        for target in targets:
            seconds = [_first(record, target / 100) for record in group.records]
            known = [each for each in seconds if each is not None]
            if len(known) == len(seconds):  # a mean of those that got there alone would flatter the group
                found = summarize(known)
                x.append(target)
                y.append(found.mean)
                intervals.append(found.interval)
        if x:
            lines.append(Line(x, y, group.color, label, intervals=intervals))
        ends = [(_final(record), record.train_seconds) for record in group.records]
        accuracies = [100 * accuracy for accuracy, _ in ends if accuracy is not None]
        if len(accuracies) == len(ends):
            accuracy, seconds = summarize(accuracies), summarize([each for _, each in ends])
            label = ("" if x else group.name) if len(groups) > 1 else "at the end, test-time augmentation included"
            how = {"intervals": [seconds.interval], "level": [accuracy.interval], "marks": True}
            lines.append(Line([accuracy.mean], [seconds.mean], group.color, label, **how))
    what = "Time to accuracy, by epochs' ends" + "; single marks: the end, with test-time augmentation" * (
        len(groups) > 1
    )
    return Figure(_accuracy_label(records), "train_seconds [s]", tuple(lines), title=_title(what, groups))


def _histogram(groups: Sequence[_Group]) -> Figure:
    """Return how many runs of each group ended at which accuracies."""
    found = [(group, [100 * each for each in map(_final, group.records) if each is not None]) for group in groups]
    found = [(group, accuracies) for group, accuracies in found if len(accuracies) >= _FEWEST]
    lines = []
    edges = _edges([each for _, accuracies in found for each in accuracies])
    for dash, (group, accuracies) in enumerate(found):
        counts = [sum(low <= each < high for each in accuracies) for low, high in itertools.pairwise(edges)]
        x = [edge for edge in edges for _ in range(2)]
        y = [0, *(count for count in counts for _ in range(2)), 0]
        lines.append(Line(x, y, group.color, group.name if len(found) > 1 else "", area=True, dash=dash))
    records = [record for group, _ in found for record in group.records]
    title = _title("Final accuracies, test-time augmentation included", [group for group, _ in found])
    return Figure(_accuracy_label(records), "runs", tuple(lines), title=title)


def _faint(group: _Group, measure: str, stem: str, factor: float) -> Iterator[Line]:
    """Give a faint line for each of several runs."""
    for record in group.records if len(group.records) > 1 else ():
        rows = [(row, value) for row, value in _points([record], measure)]
        x = [row.epoch if stem == "epoch" else row.seconds for row, _ in rows]
        yield Line(x, [factor * value for _, value in rows], group.color, faint=True)


def _mean_rows(
    records: Iterable[RunRecord], value: Callable[[EpochRow], float | None], stem: str
) -> Iterator[tuple[float, float, tuple[float, float] | None]]:
    """Give for each epoch its number or the mean of its seconds, the mean of the runs that have the value, and its
    interval."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for row in (row for record in records for row in record.history):
        if (found := value(row)) is not None:
            rows.setdefault(row.epoch, []).append((row.seconds, found))
    for epoch in sorted(rows):
        seconds, values = zip(*rows[epoch], strict=True)
        found = summarize(values)
        yield (epoch if stem == "epoch" else summarize(seconds).mean), found.mean, found.interval


def _points(records: Iterable[RunRecord], measure: str) -> Iterator[tuple[EpochRow, float]]:
    """Give the rows of records that have a number of this name, and the number."""
    for row in (row for record in records for row in record.history):
        if (found := getattr(row, measure)) is not None:
            yield row, found


def _first(record: RunRecord, target: float) -> float | None:
    """Return the seconds at the end of the first epoch at an accuracy or above; None where none is."""
    return next((row.seconds for row, accuracy in _points([record], _tested(record)) if accuracy >= target), None)


def _tested(record: RunRecord) -> str:
    """Return the name of the accuracy that a run is told by: on the test split, or where that has no labels on the
    validation split."""
    return "val_accuracy" if record.accuracy is None else "test_accuracy"


def _final(record: RunRecord) -> float | None:
    return record.val_accuracy if record.accuracy is None else record.tta_accuracy


def _targets(low: float, high: float) -> list[float]:
    """Return round accuracies between two, in percent, and that of speed records where it is between them."""
    for step in _STEPS:
        found = [step * place for place in range(math.floor(low / step) + 1, math.floor(high / step + 1e-9) + 1)]
        if len(found) >= _ENOUGH:
            break
    return sorted({*found, *([_SPEEDRUN] if low < _SPEEDRUN <= high else [])})


def _edges(accuracies: Sequence[float]) -> list[float]:
    """Return the edges of a histogram's bars: round numbers, so far apart that there are about twice the cube root of n
    of them (Rice's rule)."""
    if not accuracies:
        return []
    low, high = min(accuracies), max(accuracies)
    least = max(0.01, (high - low) / math.ceil(2 * len(accuracies) ** (1 / 3)))
    scale = 10 ** math.floor(math.log10(least))
    width = next(part * scale for part in (1, 2, 5, 10) if part * scale >= least * (1 - 1e-9))
    first, last = math.floor(low / width), math.floor(high / width) + 1
    return [width * place for place in range(first, last + 1)]


def _split_name(split: str, records: Iterable[RunRecord]) -> str:
    """Return what the images of a split are; those of the test split may be held-out or validation images."""
    names = {record.dataset.tested for record in records} if split == "test" else set()
    return names.pop() if len(names) == 1 else _SPLITS[split]


def _accuracy_label(records: Iterable[RunRecord]) -> str:
    names = {_split_name(_tested(record).removesuffix("_accuracy"), [record]) for record in records}
    return f"{names.pop()} accuracy [%]" if len(names) == 1 else "accuracy [%]"


def _title(what: str, groups: Sequence[_Group]) -> str:
    """Return what is shown, of which recipes, on which data, n and the hardware."""
    records = [record for group in groups for record in group.records]
    names = _listed(
        group.name.rpartition(", n=")[0] if len(groups) == 1 else record.recipe.name
        for group in groups
        for record in group.records
    )
    data, devices = _listed(map(data_words, records)), _listed(map(_hardware, records))
    counts = sorted({len(group.records) for group in groups})
    n = f"n={counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") if counts else "n=0"
    interval = ", ± 95% interval" if counts and counts[-1] > 1 else ", no interval"
    return f"{what}: {names} on {data}; {n}{interval}; {devices}"


def _listed(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    more = len(found) - _NAMED
    return " and ".join([", ".join(found[:_NAMED]), *([f"{more} more"] if more > 0 else [])])


def _hardware(record: RunRecord) -> str:
    device = record.device
    threads = f" ({device.threads} thread{'s' * (device.threads > 1)})" if device.threads else ""
    return f"{device.name}{threads}"
