"""`Screen`: trainings as they go on, in lines, below which bars are drawn in a terminal; in a notebook as a table."""

from __future__ import annotations

import contextlib
import html
import importlib
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from fastcifar.escape import shown_lines

if TYPE_CHECKING:
    from fastcifar.record import EpochRow

TESTED = {"test acc": "test_accuracy"}
"""The heads of columns of accuracies, and their names in an epoch's row."""
_SECONDS = 0.25
"""The least time from one drawing of the bars to the next while steps go on."""
_LEVELS = "▁▂▃▄▅▆▇█"
_LEAST, _MOST = 6, 30
"""Characters of a bar."""
_USUAL = 80
"""Columns of a terminal that says it has none."""
_BOUND = "\0"
"""Stands for a space at which a line is not broken."""


class Screen:
    """What is shown of a training, or of several: lines as they come, unless `silent`, and below them, if `bar`, bars
    of its steps and of the runs.

    Bars are drawn on standard error where that is a terminal, or in the cell of a notebook, and nowhere else: nor where
    NO_COLOR is set (https://no-color.org) or the terminal is a dumb one. They are drawn from the training's own thread,
    at most four times a second: half a millisecond each, where a thread of its own would compete with the training for
    a core.
    """

    def __init__(self, silent: bool = False, bar: bool = True) -> None:
        self.silent = silent
        self._area = _Notebook() if bar and _in_notebook() else _Terminal() if bar and _draws_bars() else _Lines()
        self._run, self._runs, self._drawn = _Run(), _Runs(), -_SECONDS
        self.begin(0)

    @property
    def shows_bars(self) -> bool:
        """Whether who reads the lines sees the bars, too."""
        return isinstance(self._area, _Notebook) or (isinstance(self._area, _Terminal) and is_terminal(sys.stdout))

    @property
    def draws(self) -> bool:
        """Whether there is anything for bars to be drawn on."""
        return self._area.draws

    def say(self, text: str = "", whole: bool = False) -> None:
        """Print lines (above the bars), at once even where the output is a file; what is no text in them is escaped.
        In a terminal they are broken between words alone or, if `whole`, as a command to be copied, nowhere."""
        if not self.silent:
            self._area.say(shown_lines(text) if whole else fitted(shown_lines(text)))

    def begin(self, total_steps: int, tested: Mapping[str, str] = TESTED, first_step: int = 0) -> None:
        """Show an empty bar of a training that begins after `first_step` steps, and the columns' heads above its first
        epoch: those of `tested` with the names of the accuracies in a row."""
        self._heads, self._tested = ("epoch", "train loss", "train acc", *tested, "seconds"), tuple(tested.values())
        self._has_rows = False
        self._run = _Run(first_step, total_steps, first_step, time.monotonic())
        self._draw()

    def step(self, step: int, total_steps: int, so_far: Callable[[], EpochRow | None] = lambda: None) -> None:
        """Move the bar to `step`; a first step shows it. `so_far` is called where the bar is drawn: it returns the row
        of the present epoch as far as it goes."""
        if self._run.total != total_steps:
            self.begin(total_steps)
        self._run.step = step
        if self._area.draws and time.monotonic() - self._drawn >= _SECONDS:
            self._run.row = so_far()
            self._draw()

    def epoch(self, row: EpochRow) -> None:
        """Say an epoch's row."""
        if not self.silent:
            tested = (share(getattr(row, name)) for name in self._tested)
            cells = (str(row.epoch), _nats(row.train_loss), share(row.train_accuracy), *tested, f"{row.seconds:.1f}")
            self._area.row(None if self._has_rows else self._heads, cells)
            self._has_rows = True

    def runs(
        self, done: int, total: int, said: str = "", values: Sequence[float] = (), left: float | None = None
    ) -> None:
        """Show a bar of several runs.

        done, total: how many runs are done, of how many.
        said: what they say together so far.
        values: their accuracies, which are drawn as a line of blocks.
        left: the seconds that the others will take; None where nothing is known yet.
        """
        self._runs = _Runs(done, total, said, tuple(values), left, time.monotonic())
        self._draw()

    def end_run(self) -> None:
        """Put the bar of a single run away."""
        self._run = _Run()
        if self._runs.total:
            self._draw()
        else:
            self._area.end()

    def end(self) -> None:
        """Put the bars away."""
        self._run, self._runs = _Run(), _Runs()
        self._area.end()

    def _draw(self) -> None:
        if self._area.draws and (self._run.total or self._runs.total):
            self._drawn = time.monotonic()
            width, unicode = self._area.form()
            run = [self._run.line(width, unicode, self._drawn)] if self._run.total else []
            runs = [self._runs.line(width, unicode, self._drawn, self._run.share)] if self._runs.total else []
            self._area.draw([*run, *runs])


@dataclass
class _Run:
    """A training that goes on."""

    step: int = 0
    total: int = 0
    first: int = 0
    began: float = 0.0
    row: EpochRow | None = None

    @property
    def share(self) -> float:
        return self.step / self.total if self.total else 0.0

    def line(self, width: int, unicode: bool, now: float) -> str:
        """Return a bar, the steps, the images per second, the time left, and loss and accuracy of the epoch so far."""
        parts = [f"{self.step}/{self.total}"]
        row, made = self.row, self.step - self.first
        if row and row.images and row.seconds:
            parts.append(f"{row.images / row.seconds:,.0f} images/s")
        if made:
            parts.append(f"{duration((now - self.began) / made * (self.total - self.step))} left")
        if row and row.train_loss is not None:
            parts += [f"loss {_nats(row.train_loss)}", f"acc {share(row.train_accuracy)}"]
        return _bar_line(self.share, parts, width, unicode)


@dataclass
class _Runs:
    """Several trainings."""

    done: int = 0
    total: int = 0
    said: str = ""
    values: tuple[float, ...] = ()
    left: float | None = None
    told: float = 0.0

    def line(self, width: int, unicode: bool, now: float, of_run: float) -> str:
        """Return a bar, the runs, the time left, what they say, and as many of the last values as there is room for."""
        parts = [f"{self.done}/{self.total} runs"]
        if self.left is not None and self.done < self.total:
            parts.append(f"{duration(max(0.0, self.left - (now - self.told)))} left")
        parts += [self.said] if self.said else []
        room = width - _LEAST - sum(2 + len(part) for part in parts) - 2
        if unicode and room > 0 and self.values:
            parts.append(sparkline(self.values[-min(room, _MOST) :]))
        return _bar_line(min(1.0, (self.done + of_run) / self.total), parts, width, unicode)


def _bar_line(part: float, words: Sequence[str], width: int, unicode: bool) -> str:
    """Return a line of at most `width` characters: a bar, and words, of which the first are left out without room."""
    words = list(words)
    while len(words) > 1 and _LEAST + sum(2 + len(word) for word in words) > width:
        del words[0]
    length = max(_LEAST, min(_MOST, width - sum(2 + len(word) for word in words)))
    full = int(part * length)
    done, left = ("━", "─") if unicode else ("#", "-")
    line = "  ".join([done * full + left * (length - full), *words])[:width]
    return line if unicode else line.replace("±", "+/-")[:width]


def sparkline(values: Sequence[float]) -> str:
    """Return a block for each value, the lowest for the least of them and the full one for the largest."""
    least, most = min(values), max(values)
    if least == most:
        return _LEVELS[3] * len(values)
    return "".join(_LEVELS[round((value - least) / (most - least) * (len(_LEVELS) - 1))] for value in values)


class _Lines:
    """Lines on standard output, and no bars."""

    draws = False

    def say(self, text: str) -> None:
        """Print lines. No stream that is closed, full or narrow ends the training that is shown."""
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError):
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)

    def row(self, heads: Sequence[str] | None, cells: Sequence[str]) -> None:
        """Say a row of a table, below its heads where they are given."""
        widths = (5, 10, 9, *[8] * (len(cells) - 3))
        for line in (heads, cells):
            if line:
                self.say("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))

    def form(self) -> tuple[int, bool]:
        """Return how wide a line of bars may be, and whether it may have any character."""
        return 0, False

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines in place of those before."""

    def end(self) -> None:
        """Put the lines of `draw` away."""


class _Terminal(_Lines):
    """Lines on standard output, and bars at the end of a terminal on standard error."""

    draws = True

    def __init__(self) -> None:
        self._live: Any = None
        self._bars: Sequence[str] = ()

    def say(self, text: str) -> None:
        bars = self._bars
        self.end()  # standard output may be the same terminal
        super().say(text)
        if bars:
            self.draw(bars)

    def form(self) -> tuple[int, bool]:
        console = self._open().console
        return console.width - 1, console.encoding.startswith("utf")

    def draw(self, lines: Sequence[str]) -> None:
        from rich.text import Text

        self._bars = lines
        self._open().update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)

    def end(self) -> None:
        if self._live:
            self._live.stop()
        self._live, self._bars = None, ()

    def _open(self) -> Any:
        if not self._live:
            from rich.console import Console
            from rich.live import Live

            how: dict[str, Any] = {"transient": True, "auto_refresh": False, "redirect_stdout": False}
            self._live = Live(console=Console(stderr=True), **how)
            self._live.start()
        return self._live


class _Notebook(_Lines):
    """A table in the cell of a notebook that is run, with lines above and bars below, replaced as a whole."""

    draws = True

    def __init__(self) -> None:
        self._said: list[str] = []
        self._heads: Sequence[str] = ()
        self._rows: list[Sequence[str]] = []
        self._bars: Sequence[str] = ()
        self._handle: Any = None

    def say(self, text: str) -> None:
        self._said.append(text)
        self._show()

    def row(self, heads: Sequence[str] | None, cells: Sequence[str]) -> None:
        self._heads = heads or self._heads
        self._rows = [*([] if heads else self._rows), cells]
        self._show()

    def form(self) -> tuple[int, bool]:
        return 100, True

    def draw(self, lines: Sequence[str]) -> None:
        self._bars = lines
        self._show()

    def end(self) -> None:
        if self._bars:
            self.draw(())

    def _show(self) -> None:
        shows = importlib.import_module("IPython.display")
        page = shows.HTML(self.page())
        if self._handle is None:
            self._handle = shows.display(page, display_id=True)
        else:
            self._handle.update(page)

    def page(self) -> str:
        """Return it in HTML."""
        table = "".join(
            f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in line)}</tr>"
            for tag, lines in (("th", [self._heads] if self._rows else []), ("td", self._rows))
            for line in lines
        )
        above, below = (html.escape("\n".join(lines).strip()) for lines in (self._said, self._bars))
        pre, close = '<pre style="margin: 0.5em 0">', "</pre>"
        parts = [f"{pre}{above}{close}"] if above else []
        parts += [f"<table>{table}</table>"] if table else []
        parts += [f"{pre}{below}{close}"] if below else []
        return "".join(parts)


def _draws_bars() -> bool:
    """Return whether standard error is a terminal that bars can be drawn on, and they are wanted."""
    return is_terminal(sys.stderr) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream, None or closed in some programs, is a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def _in_notebook() -> bool:
    """Return whether this runs in a notebook's kernel; IPython is not imported to find out."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)  # none where its import is under way
    return getattr(get_shell and get_shell(), "kernel", None) is not None


def fitted(text: str) -> str:
    """Return the lines of `text`, in a terminal those that are wider broken between words, if they can be where two
    spaces stand; what follows is indented."""
    if not is_terminal(sys.stdout):
        return text
    how: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    wrap = textwrap.TextWrapper(shutil.get_terminal_size().columns or _USUAL, subsequent_indent="  ", **how)
    lines = []
    for line in text.split("\n"):
        if len(line) > wrap.width:
            bound = re.sub(r"(?<=\S) (?=\S)", _BOUND, line) if "  " in line.strip() else line
            parts = (part.replace(_BOUND, " ") for part in wrap.wrap(bound))
            lines += [each for part in parts for each in (wrap.wrap(part) if len(part) > wrap.width else [part])]
        else:
            lines.append(line)
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a length of time to two figures: "40 s", "55 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _nats(value: float | None) -> str:
    """Return a loss, "0.2031"; "-" for none."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 10_000 else f"{value:.3g}"


def share(value: float | None) -> str:
    """Return a fraction in percent, "94.11%"; "-" for none."""
    return "-" if value is None else f"{value:.2%}"
