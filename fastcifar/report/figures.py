"""Line figures with labeled axes, saved as PNG, SVG and PDF. Matplotlib, the extra `plot`, is imported to draw one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.errors import UserError

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Line:
    """Points from left to right; a y of None is left out."""

    x: Sequence[float]
    y: Sequence[float | None]
    color: int
    """Place in matplotlib's cycle of colors: lines that belong together share it."""
    label: str = ""
    """Its name in the legend; empty: not named."""
    faint: bool = False
    """Thin and pale, as for one of several runs of which another line is the mean."""
    intervals: Sequence[tuple[float, float] | None] = ()
    """For each point the interval that its bar shows; none where empty."""
    marks: bool = False
    """Marks at the points, and no line between them."""


@dataclass(frozen=True)
class Figure:
    """Lines over named axes."""

    xlabel: str
    ylabel: str
    lines: tuple[Line, ...]
    dashed_at: float | None = None
    """The x of an upright dashed line; None: no line."""
    ticks: tuple[str, ...] = ()
    """Names for the places 0, 1, ... of the x axis; empty: whole numbers."""
    title: str = ""
    """What is shown, on which data, and n; empty: that of the experiment's result."""

    def save(self, stem: str | Path) -> list[Path]:
        """Draw the figure, save it as `stem`.png, .svg and .pdf, and return the paths. Raises UserError if matplotlib
        is missing or a file cannot be written."""
        try:
            import matplotlib  # pyright: ignore[reportMissingImports]  (an extra)
            from matplotlib.figure import Figure as Canvas  # pyright: ignore[reportMissingImports]
            from matplotlib.ticker import MaxNLocator  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("figures need matplotlib, which is not installed: pip install 'fastcifar[plot]'") from None
        canvas = Canvas(figsize=(6.4, 4.2), layout="constrained")
        axes = canvas.add_subplot()
        for line in self.lines:
            self._draw(axes, line)
        if self.dashed_at is not None:
            axes.axvline(self.dashed_at, linestyle="--", color="black", linewidth=1)
        if self.title:
            axes.set_title(self.title, loc="left", fontsize="medium", wrap=True)
        axes.set_xlabel(self.xlabel)
        axes.set_ylabel(self.ylabel)
        if self.ticks:
            axes.set_xticks(range(len(self.ticks)), self.ticks)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        canvas.legend(loc="outside upper left", frameon=False)
        files = [Path(f"{stem}.{form}") for form in FORMATS]
        try:
            files[0].parent.mkdir(parents=True, exist_ok=True)
            with matplotlib.rc_context({"svg.hashsalt": "fastcifar", "svg.fonttype": "none"}):
                for file in files:
                    canvas.savefig(file, dpi=160)
        except OSError as error:
            raise UserError(f"cannot save figures in {files[0].parent}: {error.strerror or error}") from None
        return files

    @staticmethod
    def _draw(axes: Any, line: Line) -> None:
        kept = [(place, y) for place, y in enumerate(line.y) if y is not None]
        x, y = [line.x[place] for place, _ in kept], [y for _, y in kept]
        style: dict[str, Any] = {"color": f"C{line.color}", "label": line.label or None}
        if line.faint:
            style |= {"linewidth": 0.6, "alpha": 0.35}
        if line.marks:
            style |= {"linestyle": ""}
        if line.marks or len(kept) == 1:  # a line through one point cannot be seen
            style |= {"marker": "o"}
        intervals = [line.intervals[place] or (math.nan, math.nan) for place, _ in kept] if line.intervals else []
        if not all(math.isnan(low) for low, _ in intervals):
            reach = [(y - low, high - y) for y, (low, high) in zip(y, intervals, strict=True)]
            axes.errorbar(x, y, yerr=list(zip(*reach, strict=True)), capsize=3, **style)
        else:
            axes.plot(x, y, **style)
