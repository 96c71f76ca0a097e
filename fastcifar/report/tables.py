"""Small tables, for a terminal and in Markdown. Rich is imported to show one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastcifar.escape import in_markdown, shown
from fastcifar.report.statistics import Summary

_WIDEST = 1000
"""Characters of a line if no terminal wraps it."""
_LONGEST = 200
"""Characters of a cell on a terminal; a longer text is cut."""
_NAME = 40
"""Characters of a name that stay in one line on any terminal."""
_BETWEEN = 3
"""Characters between two columns."""


@dataclass(frozen=True)
class Table:
    """Rows of texts under column heads; the first column is text, the others are numbers. Any text is shown as what it
    is: one of a file or a flag may hold escapes and Markdown."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table in Markdown, under its title."""
        rule = [":--", *["--:"] * (len(self.columns) - 1)]
        heads, *others = (list(map(in_markdown, cells)) for cells in (self.columns, *self.rows))
        rows = [heads, rule, *others]
        lines = ["| " + " | ".join(cells) + " |" for cells in rows]
        return "\n".join([f"### {in_markdown(self.title)}", "", *lines]) + "\n"

    def show(self) -> None:
        """Print the table: on a terminal as wide as it is, or as whole words need, elsewhere as wide as the rows."""
        from rich import box
        from rich.cells import cell_len
        from rich.console import Console
        from rich.table import Table as RichTable

        console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDEST)
        table = RichTable(title=shown(self.title), title_justify="left", box=box.SIMPLE)
        heads, *rows = ([shown(text, _LONGEST) for text in cells] for cells in (self.columns, *self.rows))
        texts = list(zip(heads, *rows, strict=True))
        widest = [max(map(cell_len, column)) for column in texts]
        least = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in texts]
        room = console.width - _BETWEEN * len(least) - 1
        # A name stays in one line, unless it is long.
        least[0] = widest[0] = min(widest[0], max(_NAME, room - sum(widest[1:])))
        spare = room - sum(least)
        for number, column in enumerate(heads):
            more = max(0, min(spare, widest[number] - least[number]))
            spare -= more
            table.add_column(column, justify="right" if number else "left", width=least[number] + more, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.width += max(0, -spare)
        console.print(table)


def counted(n: int, interval: str = "± 95% interval") -> str:
    """Return a title's note on n and the interval: "n=3, ± 95% interval", or "n=1, no interval"."""
    return f"n={n}, {interval}" if n > 1 else "n=1, no interval"


def percent(summary: Summary) -> str:
    """Return a mean fraction in percent with half its 95% interval: "56.20% ± 0.40"; for n = 1 the mean alone."""
    return f"{summary.mean:.2%}{_half(summary)}"


def points(summary: Summary) -> str:
    """Return a difference of fractions in percentage points with half its 95% interval: "+4.50 ± 0.40"."""
    return f"{100 * summary.mean:+.2f}{_half(summary)}"


def nats(summary: Summary, sign: str = "-") -> str:
    """Return a mean in nats with half its 95% interval: "0.2031 ± 0.0040"; with `sign` "+" a difference."""
    half = "" if summary.interval is None else f" ± {summary.interval[1] - summary.mean:.4f}"
    return f"{summary.mean:{sign}.4f}{half}"


def seconds(summary: Summary) -> str:
    """Return a mean of seconds: "12.3 s"."""
    return f"{summary.mean:,.1f} s"


def seconds_and_spread(seconds: Sequence[float], middle: Callable[[Sequence[float]], float]) -> str:
    """Return what `middle` makes of seconds (their mean, their median), and of several the least and the most:
    "12.3 s (12.1 to 14.0)"."""
    spread = f" ({min(seconds):,.1f} to {max(seconds):,.1f})" if len(seconds) > 1 else ""
    return f"{middle(seconds):,.1f} s{spread}"


def _half(summary: Summary) -> str:
    return "" if summary.interval is None else f" ± {100 * (summary.interval[1] - summary.mean):.2f}"
