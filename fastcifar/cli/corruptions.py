"""Accuracies by corruption and severity, for `fastcifar eval`: what is asked for, the table and the JSON object."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fastcifar.catalogue import find
from fastcifar.corruptions import ABSENT, CORRUPTIONS, EXTRA, LEVELS, chosen, is_missing
from fastcifar.errors import UserError, brief
from fastcifar.escape import shown
from fastcifar.screen import share

Grid = Mapping[str, Sequence[int]]
"""`grid[corruption]`: severities."""
_MAIN = 15
"""The corruptions that the benchmark's mean is over."""


def read_severities(text: str) -> list[int]:
    """Return the severities in "3", "1-5" or "1,3,5", ascending. Raises UserError for another text."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"([1-5])(?:-([1-5]))?", part)
        if not ends or int(ends[1]) > int(ends[2] or ends[1]):
            raise UserError(f"--severity is {brief(text)}; allowed: 1 to 5, as in 3, 1-5 or 1,3,5")
        found |= {*range(int(ends[1]), int(ends[2] or ends[1]) + 1)}
    return sorted(found)


def archive_of(word: str | None) -> Grid:
    """Return the corruptions that a data set holds as its variants, `fog-3` and the like; none for the name of another
    set or of one variant. Raises UserError for an unknown one."""
    entry, variant = find(word) if word is not None else (None, "")
    if entry is None or variant or not entry.variants:
        return {}
    found: dict[str, list[int]] = {}
    for each in entry.variants:
        name, _, level = each.rpartition("-")
        if not name or level not in map(str, LEVELS):
            return {}
        found.setdefault(name, []).append(int(level))
    return found


def corrupt_of(word: str | None, severity: str | None) -> str:
    """Return the options that name what the word of one variant of an archive does, at another severity perhaps; empty
    for other words."""
    name, _, variant = (word or "").partition(":")
    if word is None or not find(word)[1] or not archive_of(name):
        return ""
    corruption, _, level = variant.rpartition("-")
    return f"--on {name} --corrupt {corruption} --severity {severity or level}"


def select(archive: Grid, corruptions: str | None, severities: Sequence[int]) -> Grid:
    """Return what is asked for: of an archive all of it, unless `corruptions` says which; else what is made here."""
    if corruptions is None:
        names = list(archive)
    else:
        names = chosen(corruptions, list(archive)) if archive else chosen(corruptions)
    grid = {name: [level for level in severities if level in archive.get(name, LEVELS)] for name in names}
    return {name: levels for name, levels in grid.items() if levels}


@dataclass
class Accuracies:
    """Accuracies, fractions, by corruption and severity."""

    grid: Grid
    found: dict[str, dict[int, float]] = field(default_factory=dict)

    def measure(self, accuracy: Callable[[str, int], float], say: Callable[[str], object]) -> None:
        """Ask `accuracy(corruption, severity)` for each, and say the table line by line."""
        levels = sorted({level for each in self.grid.values() for level in each})
        say(self._line("corruption", map(str, levels), "mean"))
        for name, asked in self.grid.items():
            self.found[name] = {level: accuracy(name, level) for level in asked}
            row = self.found[name]
            say(self._line(name, (share(row.get(level)) for level in levels), share(self.mean([name]))))
        means = (share(self.mean(self.averaged, level)) for level in levels)
        say(self._line("mean", means, share(self.mean(self.averaged))))

    @property
    def averaged(self) -> list[str]:
        """The corruptions that the mean is over: those of the benchmark's, or all where there is none of them."""
        return [name for name in self.grid if name not in EXTRA] or list(self.grid)

    def mean(self, names: Sequence[str], level: int | None = None) -> float | None:
        """Return the mean over the severities of each corruption, or over one severity; None for none."""
        rows = [[row[each] for each in row if level in (None, each)] for row in map(self.found.__getitem__, names)]
        return statistics.fmean(statistics.fmean(row) for row in rows if row) if any(rows) else None

    def remarks(self, is_archive: bool) -> list[str]:
        """Return what the mean is, and what is not in it."""
        names, mean = self.averaged, self.mean(self.averaged)
        of = (
            f"of the benchmark's {_MAIN} corruptions"
            if names[0] not in EXTRA
            else "that the benchmark's mean leaves out"
        )
        error = "-" if mean is None else share(1 - mean)
        lines = [f"mean corruption error {error} over {len(names)} {of}, not divided by AlexNet's"]
        lacking = {**ABSENT, **{name: "it needs pillow" for name in CORRUPTIONS if is_missing(name)}}
        lacking = {name: why for name, why in lacking.items() if name not in self.grid}
        if not is_archive and len(self.grid) + len(lacking) == len(CORRUPTIONS) + len(ABSENT):
            lines += [f"without {name}: {why}" for name, why in lacking.items()]
        return lines

    def to_json(self) -> dict[str, object]:
        """Return the accuracies and their means."""
        mean = self.mean(self.averaged)
        return {
            "accuracies": {
                name: {str(level): value for level, value in row.items()} for name, row in self.found.items()
            },
            "means": {name: self.mean([name]) for name in self.grid},
            "averaged": self.averaged,
            "mean_accuracy": mean,
            "mean_corruption_error": None if mean is None else 1 - mean,
        }

    def _line(self, head: str, cells: Iterable[str], last: str) -> str:
        width = max(10, *(len(shown(name)) for name in self.grid))
        return f"{shown(head):<{width}}" + "".join(f"{cell:>9}" for cell in (*cells, last))
