"""Figures of runs, from their records alone: what was reached and lost by epoch and by second, how long an accuracy
took, and how final accuracies spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.record import EpochRow, RunRecord
from fastcifar.report.figures import COLORS, Figure, Line
from fastcifar.report.runs import Runs
from fastcifar.report.statistics import summarize
from fastcifar.report.summary import data_words, row_names

_MOST_FAINT = 10
"""A line for each run is drawn where there are at most so many, in all."""
_FEWEST = 5
"""Runs of which there is a histogram."""
_NAMED = 3
"""Names, data sets and machines that a title says; of more it says how many."""
_STEPS = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)
"""Between the accuracies, in percent, of which it is drawn how long they took: the first by which there are enough."""
_ENOUGH = 5
_ROUNDING = 1e-6
"""Accuracies that are so near to a round one, in percent, or as a part of a step, are it."""
_HIGH = range(90, 100)
"""Accuracies, in percent, that are drawn in any case: records are told for them."""
_LONGEST = 50
"""Characters of a name in a title."""
_AXES = {"epoch": "epoch", "seconds": "train_seconds [s]"}
_LINES, _POINTS = ("solid", "dashed", "dotted"), ("filled marks", "empty", "half filled")
"""How lines of the first, second and third split are drawn, and where each is but a point."""
_ASIDE, _ASIDE_ALL = 24, 300
"""Points from a group to the next at most, where all are at one x, and from the first to the last."""
_SPLITS = {"test": "test", "val": "validation", "train": "training"}
STEMS = (
    *("accuracy-by-epoch", "loss-by-epoch", "accuracy-by-seconds", "loss-by-seconds", "time-to-accuracy"),
    *("accuracy-histogram", "learning-rate-by-epoch", "learning-rate-by-seconds"),
)
"""The stems of the files of all figures, in the order in which they are shown."""


@dataclass(frozen=True)
class _Group:
    """Runs that are drawn in one color."""

    title: str
    """The recipe, or the arm of an experiment."""
    label: str
    color: int
    records: tuple[RunRecord, ...]


def draw_runs(groups: Sequence[Runs], folder: Path) -> list[Path]:
    """Save the figures of runs in `folder`, in place of files of their names, and return the paths. Other files there
    may be the user's own, and stay. Raises UserError where matplotlib is missing, no run is finished or a file cannot
    be written."""
    figures = run_figures(groups)
    if not figures:
        raise UserError("no run is finished; allowed: runs with an epoch or more")
    return [file for stem, figure in figures.items() for file in figure.save(folder / stem)]


def run_figures(groups: Sequence[Runs]) -> dict[str, Figure]:
    """Return the figures of runs, those of each group in a color of its own, by the stems of their files and in the
    order in which they are shown: accuracy, losses and learning rate by epoch and by the training stopwatch, the time
    to accuracies, and, where a group has 5 runs or more, their histogram.

    Lines are means and bands their 95% intervals. What no record has, as test accuracies where images have no labels,
    is not drawn; without a finished run there is no figure.
    """
    kept = [(runs, name) for runs, name in zip(groups, row_names(groups), strict=True) if runs.records]
    has_counts = len({len(runs.records) for runs, _ in kept}) > 1
    drawn = [
        _Group(runs.name, name + f", n={len(runs.records)}" * has_counts, color, runs.records)
        for color, (runs, name) in enumerate(kept)
    ]
    figures = {"time-to-accuracy": _times(drawn), "accuracy-histogram": _histogram(drawn)}
    for by in ("epoch", "seconds"):
        figures[f"accuracy-by-{by}"] = _curves(drawn, "accuracy", ("test", "val"), by)
        figures[f"loss-by-{by}"] = _curves(drawn, "loss", ("test", "val", "train"), by)
        figures[f"learning-rate-by-{by}"] = _learning_rates(drawn, by)
    return {stem: figures[stem] for stem in STEMS if figures[stem].lines}


def _curves(groups: Sequence[_Group], measure: str, splits: Sequence[str], by: str) -> Figure:
    """Return accuracies in percent or losses of each split that has any, by epoch or by seconds."""
    factor, unit = (100, "%") if measure == "accuracy" else (1, "nats")
    records = [record for group in groups for record in group.records]
    splits = [split for split in splits if any(_points(records, f"{split}_{measure}"))]
    words = [_split_name(split, records) for split in splits]
    has_groups, has_splits = len(groups) > 1, len(splits) > 1  # the legend names the former, else the latter
    lines: list[Line] = []
    for group in groups:
        first = next((split for split in splits if any(_points(group.records, f"{split}_{measure}"))), None)
        for place, split in enumerate(splits):
            dash = place if has_splits else None
            label = words[place] if has_splits else ""
            if has_groups:
                label = group.label if split == first else ""
            has_singles = split == first and len(group.records) > 1 and len(records) <= _MOST_FAINT
            for record in group.records if has_singles else ():
                lines += _mean(group, [record], f"{split}_{measure}", by, factor, dash=dash, faint=True)
            lines += _mean(group, group.records, f"{split}_{measure}", by, factor, label, dash)
    styles = _LINES if _has_lines(lines) else _POINTS
    which = ", ".join(f"{style}: {word}" for style, word in zip(styles, words, strict=False))
    what = f"{measure.capitalize()} by {by}" + f" ({which})" * (has_groups and has_splits)
    name = measure if has_splits or not words else f"{words[0]} {measure}"
    limits = _limits(lines, 100 if measure == "accuracy" else math.inf)
    return Figure(_AXES[by], f"{name} [{unit}]", _told_apart(lines), y_range=limits, title=_title(what, groups))


def _learning_rates(groups: Sequence[_Group], by: str) -> Figure:
    lines: list[Line] = []
    for group in groups:
        lines += _mean(group, group.records, "learning_rate", by, 1, group.label if len(groups) > 1 else "")
    title = _title(f"Learning rate of each epoch's last step, by {by}", groups, False)
    return Figure(_AXES[by], "learning rate", _told_apart(lines), title=title)


def _has_lines(lines: Iterable[Line]) -> bool:
    return any(len(line.x) > 1 for line in lines)


def _told_apart(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Return lines, or, where all are points at one x, points that are beside one another by their groups."""
    groups = sorted({line.color for line in lines})
    if _has_lines(lines) or len({x for line in lines for x in line.x}) > 1:
        return tuple(lines)
    step, middle = min(_ASIDE, _ASIDE_ALL / (len(groups) or 1)), (len(groups) - 1) / 2
    return tuple(replace(line, aside=step * (groups.index(line.color) - middle)) for line in lines)


def _mean(
    group: _Group,
    records: Sequence[RunRecord],
    key: str,
    by: str,
    factor: float,
    label: str = "",
    dash: int | None = None,
    faint: bool = False,
) -> Iterator[Line]:
    """Give the line through the mean of a number over the runs that have it, epoch by epoch, with its interval; of
    seconds it is the mean too. Of epochs that all of these runs have: where some have ended, a mean would be that of
    the slowest to end."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for row, value in _points(records, key):
        rows.setdefault(row.epoch, []).append((row.seconds, factor * value))
    count = sum(any(_points([record], key)) for record in records)
    x, y, band = [], [], []
    for epoch in sorted(epoch for epoch, found in rows.items() if len(found) == count):
        seconds, values = map(summarize, zip(*rows[epoch], strict=True))
        x.append(epoch if by == "epoch" else seconds.mean)
        y.append(values.mean)
        band.append(values.interval if key != "learning_rate" else None)
    if x:
        yield Line(x, y, group.color, label, faint, band=band if any(band) else (), dash=dash)


def _limits(lines: Sequence[Line], most: float) -> tuple[float, float] | None:
    """Return the ends of the y axis: bands of few runs are wide, and those that would leave the lines no room are cut
    off. None: as matplotlib has it."""
    values = [y for line in lines for y in line.y if y is not None]
    ends = [end for line in lines for each in line.band if each for end in each]
    span = max(values, default=0) - min(values, default=0)
    if not span or not ends:
        return None
    low, high = min(values), max(values)
    low, high = min(low, max(min(ends), low - span / 2)), max(high, min(max(ends), high + span / 2))
    return max(0, low - span / 20), min(most, high + span / 20)


def _times(groups: Sequence[_Group]) -> Figure:
    """Return the seconds of training at which each group was first seen at accuracies, and those to its end."""
    records = [record for group in groups for record in group.records]
    reached = [100 * value for record in records for _, value in _points([record], _tested(record))]
    targets = _targets(min(reached), max(reached)) if reached else []
    lines = []
    for group in groups:
        found = {target: [_first(record, target) for record in group.records] for target in targets}
        # A mean of the runs that got there alone would flatter the group.
        times = {target: summarize(known) for target, each in found.items() if len(known := _known(each)) == len(each)}
        of_times, of_end = "end of the first epoch at this accuracy or above", _end(group.records)
        if len(groups) > 1:  # its name is said once
            of_times, of_end = group.label, "" if times else group.label
        if times:
            means, intervals = [each.mean for each in times.values()], [each.interval for each in times.values()]
            lines.append(Line(list(times), means, group.color, of_times, intervals=intervals))
        accuracies = _known(map(_final, group.records))
        if len(accuracies) == len(group.records):
            accuracy, seconds = summarize(accuracies), summarize([record.train_seconds for record in group.records])
            how = {"intervals": [seconds.interval], "level": [accuracy.interval], "marks": True}
            lines.append(Line([accuracy.mean], [seconds.mean], group.color, of_end, **how))
    what = "Time to accuracy, by the ends of epochs" + f"; large marks: {_end(records)}" * (len(groups) > 1)
    most = max((y for line in lines for y in line.y if y is not None), default=0)
    ends = [each[1] for line in lines for each in line.intervals if each]
    limits = (0, 1.05 * max(most, min(1.5 * most, max(ends)))) if most and ends else None
    return Figure(_accuracy_label(records), _AXES["seconds"], tuple(lines), y_range=limits, title=_title(what, groups))


def _histogram(groups: Sequence[_Group]) -> Figure:
    """Return how many runs of each group of some size ended at which accuracies."""
    found = [(group, _known(map(_final, group.records))) for group in groups]
    found = [(group, accuracies) for group, accuracies in found if len(accuracies) >= _FEWEST]
    width = _width([each for _, accuracies in found for each in accuracies])
    bars = [[math.floor(each / width + _ROUNDING) for each in accuracies] for _, accuracies in found]
    every = range(min(map(min, bars), default=0), max(map(max, bars), default=0) + 1)
    lines = []
    for (group, _), own in zip(found, bars, strict=True):
        x = [width * bar for bar in (*every, every.stop) for _ in range(2)]
        y = [0, *(own.count(bar) for bar in every for _ in range(2)), 0]
        dash = group.color + group.color // len(COLORS)  # there are no marks to tell them apart in gray
        lines.append(Line(x, y, group.color, group.label if len(found) > 1 else "", area=True, dash=dash))
    drawn = [group for group, _ in found]
    records = [record for group in drawn for record in group.records]
    what = f"Accuracies {_end(records)}"
    return Figure(_accuracy_label(records), "runs", tuple(lines), title=_title(what, drawn, False))


def _points(records: Iterable[RunRecord], measure: str) -> Iterator[tuple[EpochRow, float]]:
    """Give the rows of records that have a number of this name, and the number."""
    for row in (row for record in records for row in record.history):
        if (found := getattr(row, measure)) is not None:
            yield row, found


def _first(record: RunRecord, target: float) -> float | None:
    """Return the seconds at the end of the first epoch at an accuracy in percent or above; None where none is."""
    rows = _points([record], _tested(record))
    return next((row.seconds for row, accuracy in rows if 100 * accuracy >= target - _ROUNDING), None)


def _tested(record: RunRecord) -> str:
    """Return the name of the accuracy that a run is told by: on the test split, or where that has no labels on the
    validation split."""
    return "val_accuracy" if record.accuracy is None else "test_accuracy"


def _final(record: RunRecord) -> float | None:
    """Return the accuracy at the end, in percent."""
    accuracy = record.final_accuracy
    return None if accuracy is None else 100 * accuracy


def _end(records: Sequence[RunRecord]) -> str:
    """Return what the accuracies of `_final` are."""
    has_tta = any(record.accuracy is not None and record.recipe.evaluate.tta != "none" for record in records)
    return "at the end" + ", with test-time augmentation" * has_tta


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _targets(low: float, high: float) -> list[float]:
    """Return round accuracies between two, in percent, and the high ones that are between them."""
    for step in _STEPS:
        first, last = (math.floor(end / step + _ROUNDING) for end in (low, high))
        found = [round(step * place, 1) for place in range(first + 1, last + 1)]
        if len(found) >= _ENOUGH:
            break
    return sorted({*found, *(float(each) for each in _HIGH if low + _ROUNDING < each <= high + _ROUNDING)})


def _width(accuracies: Sequence[float]) -> float:
    """Return how wide the bars of a histogram are: a round number, by which there are about twice the cube root of n of
    them (Rice's rule)."""
    apart = max(accuracies, default=0) - min(accuracies, default=0)
    least = max(0.01, apart / math.ceil(2 * len(accuracies) ** (1 / 3) or 1))
    scale = 10 ** math.floor(math.log10(least))
    return next(part * scale for part in (1, 2, 5, 10) if part * scale >= least * (1 - _ROUNDING))


def _split_name(split: str, records: Iterable[RunRecord]) -> str:
    """Return what the images of a split are; those of the test split may be held-out or validation images."""
    names = {record.dataset.tested for record in records} if split == "test" else set()
    return names.pop() if len(names) == 1 else _SPLITS[split]


def _accuracy_label(records: Iterable[RunRecord]) -> str:
    names = {_split_name(_tested(record).removesuffix("_accuracy"), [record]) for record in records}
    return f"{names.pop()} accuracy [%]" if len(names) == 1 else "accuracy [%]"


def _title(what: str, groups: Sequence[_Group], has_intervals: bool = True) -> str:
    """Return what is shown; of which recipes, on which data; n and the hardware: a line each."""
    records = [record for group in groups for record in group.records]
    names, data = _listed(shown(group.title, _LONGEST) for group in groups), _listed(map(data_words, records))
    counts = sorted({len(group.records) for group in groups}) or [0]
    n = f"n={counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")
    n += (", ± 95% interval" if counts[-1] > 1 else ", no interval") if has_intervals else ""
    return f"{what}\n{names} on {data}\n{n}; {_listed(map(_hardware, records))}"


def _listed(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    found = found if len(found) <= _NAMED else [*found[:_NAMED], f"{len(found) - _NAMED} more"]
    return " and ".join(filter(None, [", ".join(found[:-1]), *found[-1:]]))


def _hardware(record: RunRecord) -> str:
    device = record.device
    threads = f" ({device.threads} thread{'s' * (device.threads > 1)})" if device.threads else ""
    return f"{shown(device.name, _LONGEST)}{threads}"
