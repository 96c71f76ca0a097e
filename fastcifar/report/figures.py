"""Line figures with labeled axes, saved as PNG, SVG and PDF. Matplotlib, the extra `plot`, is imported to draw one."""

from __future__ import annotations

import contextlib
import html
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.output import made, write_all

FORMATS = ("png", "svg", "pdf")


def remove_figures(folder: Path, names: Iterable[str]) -> None:
    """Remove figures of an earlier call, if they are there. Raises UserError where that cannot be done."""
    for file in (folder / f"{name}.{form}" for name in names for form in FORMATS):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove the earlier figure {file}: {error.strerror or error}") from None


_LONGEST, _LONGEST_LABEL, _LONGEST_NAME, _WIDTH = 200, 70, 50, 80
"""Characters of a title's line, of a name in the legend, of any other text, and of a title's width; longer ones would
leave the lines no room."""
COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
"""Ten colors that people with any kind of color blindness tell apart (Petroff 2021, "Accessible color sequences for
data visualization", arXiv 2107.02270); the last but one is the gray of what others are compared with."""
GRAY = 8
_MARKS = "os^DvP<X>*"
"""A mark for each color, by which it is known in print without color."""
_MOST_MARKS = 20
"""Marks on a line of many points."""
_BLACK, _OWN = "#000000", "currentColor"
_DASHES = ("-", "--", ":", "-.")
_FILLS = ("full", "none", "left", "bottom")
"""How much of a mark is filled on a line of each `Line.dash`."""
_MOST_ROWS, _HALF_LABEL = 6, 32
"""Names in a column of the legend; more are in two, if none has more characters than the second number."""
_USUAL_ROWS = 2
"""Rows of the legend for which a figure of the usual height has room."""
_NOTE_POINTS = 9.5
"""Height of a name beside the lines, in points."""
_ACCURACIES = (
    0.01,
    0.02,
    0.05,
    *(part / 10 for part in range(1, 9)),
    0.85,
    0.9,
    0.93,
    0.95,
    0.97,
    0.98,
    0.99,
    0.995,
    0.999,
)
"""Ticks of axes of accuracies, fractions."""
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fastcifar",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
}


@dataclass(frozen=True)
class Line:
    """Points from left to right; a y of None is left out."""

    x: Sequence[float]
    y: Sequence[float | None]
    color: int
    """Place in the cycle of ten colors; from 10, 20 and 30 on they come again with other marks, and where `dash` is
    None dashed in another way each. Lines that belong together share it."""
    label: str = ""
    """Its name in the legend; empty: not named."""
    faint: bool = False
    """Thin and pale, as for one of several runs of which another line is the mean."""
    intervals: Sequence[tuple[float, float] | None] = ()
    """For each point the interval that its bar shows, upright or, in a figure with `rows`, level; none where empty."""
    marks: bool = False
    """Marks at the points, and no line between them."""
    bars: bool = False
    """In a figure with `rows`: bars from 0 to the points."""
    level: Sequence[tuple[float, float] | None] = ()
    """For each point the interval of x that a level bar shows, likewise."""
    band: Sequence[tuple[float, float] | None] = ()
    """For each point the least and the largest y of a pale band about the line, None: no band there; of a line of
    one point, which a band would not show, the ends of a bar. None where empty."""
    dash: int | None = None
    """From 0 to 3: a way to dash it, whatever its color, and to fill its marks, by which lines of one color are told
    apart. None: dashed by its color."""
    bare: bool = False
    """Without the marks of its color: a curve that is computed, or a bound."""
    area: bool = False
    """The outline of what lies between it and 0, as of a histogram; without marks."""
    aside: float = 0
    """It is drawn so many points, 1/72 inch, to the right, by which what is at one place can be told apart."""
    note: str = ""
    """A name at the right, from which a thin line leads to its last point, where a legend of so many would be no
    help."""


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
    rows: tuple[str, ...] = ()
    """Names for the places 0, 1, ... of the y axis, from the top; then x is a measure. Empty: y is one."""
    log_y: bool = False
    """The y axis is logarithmic."""
    log: bool = False
    """Both axes are logarithmic, x by powers of two."""
    accuracies: bool = False
    """Both axes are of accuracies, fractions, and are drawn on logit scales with ticks in percent."""
    right: tuple[Line, ...] = ()
    """Lines that are read on an axis of their own, at the right."""
    right_label: str = ""
    y_range: tuple[float, float] | None = None
    """The ends of the y axis; None: as the lines need."""
    title: str = ""
    """What is shown, on which data, and n, in lines of their own if need be; empty: that of the experiment's result."""

    def save(self, stem: str | Path) -> list[Path]:
        """Draw the figure, save it as `stem`.png, .svg and .pdf, and return the paths. Raises UserError if matplotlib
        is missing or a file cannot be written."""
        files = [Path(f"{stem}.{form}") for form in FORMATS]
        with self._canvas() as canvas, made(files[0].parent) as folder:
            write_all(folder, {file.name: lambda path: canvas.savefig(path, dpi=160) for file in files})
        return files

    def svg(self, key: str) -> str:
        """Return the figure as an <svg> element of a page that may be light or dark: what is black takes the page's own
        color, texts are text, and ids begin with `key`, one for each figure of the page. Raises UserError if matplotlib
        is missing."""
        drawn = io.StringIO()
        with self._canvas() as canvas:
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            canvas.savefig(drawn, format="svg", transparent=True, metadata=nothing)
        _, root, inside = re.split(r"(<svg [^>]*>)", drawn.getvalue(), maxsplit=1)
        inside = re.sub(r"<style.*?</style>", "", inside, count=1, flags=re.DOTALL)  # a page would obey it too
        box, name = re.search(r'viewBox="[^"]*"', root), html.escape(key)

        def as_part(tag: re.Match[str]) -> str:
            return re.sub(r'\bid="|url\(#|href="#', lambda found: f"{found[0]}{name}-", tag[0]).replace(_BLACK, _OWN)

        words = ": ".join(shown(line, _LONGEST) for line in (self.title or self.ylabel).split("\n"))
        how = f'role="img" aria-label="{html.escape(words)}"'
        how += f' fill="{_OWN}" stroke-linejoin="round" stroke-linecap="butt"'
        links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f"<svg {links} {box[0] if box else ''} {how}>{re.sub('<[^>]*>', as_part, inside).strip()}"

    @contextlib.contextmanager
    def _canvas(self) -> Iterator[Any]:
        """Give matplotlib's figure, drawn."""
        with drawing():
            yield self._drawn()

    def _drawn(self) -> Any:
        from matplotlib.figure import Figure as Canvas  # pyright: ignore[reportMissingImports]

        labels = [line.label for line in (*self.lines, *self.right) if line.label]
        columns = 1 + (len(labels) > _MOST_ROWS and max(map(len, labels)) <= _HALF_LABEL)
        legend = 0.21 * max(0, math.ceil(len(labels) / columns) - _USUAL_ROWS)  # inches
        notes = [line for line in self.lines if line.note and any(y is not None for y in line.y)]
        height = max(4.2, 1.2 + 0.3 * len(self.rows), 1.2 + len(notes) * _NOTE_POINTS / 72) + legend
        canvas = Canvas(figsize=(6.4, height), layout="constrained")
        axes = canvas.add_subplot()
        for line in self.lines:
            self._draw(axes, line, bool(self.rows))
        if self.right:
            other = axes.twinx()
            for line in self.right:
                self._draw(other, line)
            other.set_ylabel(shown(self.right_label, _LONGEST_NAME))
        if self.dashed_at is not None:
            axes.axvline(self.dashed_at, linestyle="--", color="black", linewidth=1)
        if self.title:
            title = (textwrap.fill(shown(line, _LONGEST), _WIDTH) for line in self.title.split("\n"))
            axes.set_title("\n".join(title), loc="left", fontsize="medium")  # its own wrapping reads "$" as mathematics
        axes.set_xlabel(shown(self.xlabel, _LONGEST_NAME))
        axes.set_ylabel(shown(self.ylabel, _LONGEST_NAME))
        self._set_ticks(axes)
        if self.y_range:
            axes.set_ylim(*self.y_range)
        _name(axes, notes, _NOTE_POINTS / 72 / (height - 1.2))
        axes.grid(color="black", alpha=0.12)
        if labels:
            canvas.legend(loc="outside upper left", frameon=False, ncols=columns)
        return canvas

    def _set_ticks(self, axes: Any) -> None:
        """Give both axes their scales and ticks."""
        from matplotlib.ticker import (  # pyright: ignore[reportMissingImports]
            FixedLocator,
            LogLocator,
            MaxNLocator,
            NullFormatter,
            NullLocator,
        )

        logs = [math.log10(y) for line in self.lines for y in line.y if y is not None and 0 < y < math.inf]
        if self.log_y and logs:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(logs) < min(logs) + 4 else (1,)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")  # matplotlib's own is mathematics
        if self.ticks:
            axes.set_xticks(range(len(self.ticks)), list(map(_tick, self.ticks)))
        elif self.rows:
            axes.set_yticks(range(len(self.rows)), list(map(_tick, self.rows)))
            axes.set_ylim(len(self.rows) - 0.5, -0.5)
        elif self.log:
            axes.set_xscale("log", base=2)
            if logs:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_formatter(NullFormatter())
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:,.10g}")  # matplotlib's own are formulas
        elif self.accuracies:
            self._scale(axes)
        elif all(float(x).is_integer() for line in self.lines for x in line.x):
            places = {x for line in self.lines for x in line.x}
            axes.xaxis.set_major_locator(MaxNLocator(integer=True) if len(places) > 1 else FixedLocator([*places]))
        if any(line.area for line in self.lines):  # they count something
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(bottom=0)

    @staticmethod
    def _scale(axes: Any) -> None:
        """Put logit scales on both axes, with a tick at each of `_ACCURACIES` that is on them."""
        for axis, scale, limits in (
            (axes.xaxis, axes.set_xscale, axes.get_xlim),
            (axes.yaxis, axes.set_yscale, axes.get_ylim),
        ):
            scale("logit", nonpositive="clip")
            low, high = limits()
            places = [each for each in _ACCURACIES if low <= each <= high]
            if len(places) < 3:  # a narrow range
                places = [part / 1000 for part in range(1, 1000) if low <= part / 1000 <= high]
            axis.set_ticks(places, [f"{100 * each:g}%" for each in places])
            axis.set_ticks([], minor=True)

    @staticmethod
    def _draw(axes: Any, line: Line, level: bool = False) -> None:
        kept = [(place, y) for place, y in enumerate(line.y) if y is not None]
        x, y = [line.x[place] for place, _ in kept], [y for _, y in kept]
        again, place = divmod(line.color, len(COLORS))
        dashes = _DASHES[(again if line.dash is None else line.dash) % len(_DASHES)]
        style: dict[str, Any] = {"color": COLORS[place], "linestyle": dashes, "label": _label(line.label)}
        mark = {"marker": _MARKS[(place + again) % len(_MARKS)], "fillstyle": _FILLS[(line.dash or 0) % len(_FILLS)]}
        if line.faint:
            style |= {"linewidth": 0.6, "alpha": 0.35}
        if line.marks:
            style |= {"linestyle": ""}
        if line.marks or (len(kept) == 1 and not line.bars):  # a line through one point cannot be seen
            style |= mark
        elif not (line.faint or line.bare or line.area or line.bars):
            every = math.ceil(len(kept) / _MOST_MARKS) or 1
            style |= {**mark, "markersize": 4, "markevery": (place % every, every)}
        if line.aside:
            from matplotlib.transforms import ScaledTranslation  # pyright: ignore[reportMissingImports]

            step = ScaledTranslation(line.aside / 72, 0, axes.figure.dpi_scale_trans)
            style["transform"] = axes.transData + step
        if line.area:
            axes.fill_between(x, 0, y, color=style["color"], alpha=0.2, linewidth=0)
        bars, of_point = {}, line.band if len(kept) == 1 else ()
        for axis, given in (("xerr" if level else "yerr", line.intervals), ("xerr", line.level), ("yerr", of_point)):
            intervals = [given[place] or (math.nan, math.nan) for place, _ in kept] if given else []
            if not all(math.isnan(low) for low, _ in intervals):
                pairs = zip(x if axis == "xerr" else y, intervals, strict=True)
                bars[axis] = list(zip(*((mean - low, high - mean) for mean, (low, high) in pairs), strict=True))
        if line.band and not of_point:
            lows, highs = zip(*(line.band[place] or (math.nan, math.nan) for place, _ in kept), strict=True)
            axes.fill_between(x, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
        if line.bars:
            axes.barh(y, x, height=0.6, capsize=3, **bars, **style)
        elif bars:
            axes.errorbar(x, y, **bars, capsize=3, **style)
        else:
            axes.plot(x, y, **style)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Have matplotlib draw texts as they are, and files that are the same each time, while the block runs. Raises
    UserError where it is missing."""
    refuse_without_matplotlib()
    import matplotlib  # pyright: ignore[reportMissingImports]  (an extra)

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a script that matplotlib's has not
        yield


def refuse_without_matplotlib() -> None:
    """Raise UserError where no figure can be drawn."""
    try:
        import matplotlib.figure  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError:
        raise UserError("figures need matplotlib, which is not installed: pip install 'fastcifar[plot]'") from None


def _name(axes: Any, lines: Sequence[Line], gap: float) -> None:
    """Put the notes of `lines` in a column at the right of the axes, by the height of what they name.

    gap: the least distance between two, as a part of the axes' height.
    """
    axes.get_ylim()  # until it is asked for, the scale is not that of the lines
    on_axes = axes.transData + axes.transAxes.inverted()
    ends = [[point for point in zip(line.x, line.y, strict=True) if point[1] is not None][-1] for line in lines]
    named = sorted(zip((on_axes.transform(end)[1] for end in ends), range(len(lines)), strict=True))
    for height, (_, place) in zip(_apart([each for each, _ in named], gap), named, strict=True):
        line = lines[place]
        leader = {"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4}
        leader["color"] = COLORS[line.color % len(COLORS)]
        where = {"xytext": (1.03, height), "textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        axes.annotate(shown(line.note, _LONGEST_NAME), ends[place], **where, arrowprops=leader, fontsize="x-small")


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Return places from 0 to 1 that are `gap` apart or more and, by their squared distances, as near as can be to the
    wanted ones, which rise (pool adjacent violators, Ayer and others 1955)."""
    blocks: list[tuple[float, int]] = []
    for rank, place in enumerate(wanted):
        mean, count = place - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        blocks.append((mean, count))
    least = [mean for mean, count in blocks for _ in range(count)]
    most = max(0.0, 1 - (len(wanted) - 1) * gap)
    return [min(max(each, 0.0), most) + rank * gap for rank, each in enumerate(least)]


def _tick(text: str) -> str:
    """Return the name of a tick, which may have several lines, as it is shown."""
    return "\n".join(shown(line, _LONGEST_NAME) for line in text.split("\n"))


def _label(text: str) -> str | None:
    """Return a label for the legend; None: none. A space keeps one that begins with an underscore, which matplotlib
    would leave out."""
    return f"{' ' * text.startswith('_')}{shown(text, _LONGEST_LABEL)}" if text else None
