"""Drawings of results as small SVG files: the same bytes from the same results, and readable in a column of a phone.

Texts and axes have the color of the page that they are put into; a file by itself is dark on light, or light on dark
where the reader's system is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fastcifar.escape import shown

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Okabe and Ito's, which color-blind people tell apart; on dark as on light."""
_WIDTH, _LEFT, _RIGHT, _LINE = 420, 16, 404, 15
_STYLE = "<style>.drawn{color:#222}@media(prefers-color-scheme:dark){.drawn{color:#ddd}}</style>"


@dataclass(frozen=True)
class Mark:
    """A value with its interval, named."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    x: float = 0.0
    """In `scatter`: the place on the other axis."""
    color: int = 0
    note: str = ""
    """What stands at the right of the name."""


def forest(marks: Sequence[Mark], axis: str) -> str:
    """Return a drawing of values and intervals on one axis, a row each, with a line at 0."""
    ends = [end for mark in marks for end in (*(mark.interval or ()), mark.value, 0.0)]
    low, high = _padded(min(ends), max(ends))

    def across(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low)

    parts, top = [], 12
    bottom = top + 34 * len(marks)
    for tick in _ticks(low, high):
        weight = 'stroke-opacity="0.8"' if tick == 0 else 'stroke-opacity="0.15"'
        rows = range(top + 16, bottom, 34)  # and not behind the names
        beside = "".join(f"M{across(tick):.1f} {row}v16" for row in rows)
        parts.append(f'<path d="{beside}" stroke="currentColor" {weight}/>')
        parts.append(_text(across(tick), bottom + _LINE, f"{tick:+g}" if tick else "0", "middle"))
    for number, mark in enumerate(marks):
        y, color = top + 34 * number + 24, COLORS[mark.color]
        parts.append(_text(_LEFT, y - 10, mark.name))
        parts.append(_text(_RIGHT, y - 10, mark.note, "end"))
        if mark.interval:
            parts.append(_line(across(mark.interval[0]), y, across(mark.interval[1]), y, ' stroke-width="2"', color))
        parts.append(f'<circle cx="{across(mark.value):.1f}" cy="{y}" r="4" fill="{color}"/>')
    parts.append(_text(_WIDTH / 2, bottom + 2 * _LINE + 3, axis, "middle"))
    return _svg(parts, bottom + 2 * _LINE + 12)


def scatter(marks: Sequence[Mark], xlabel: str, ylabel: str) -> str:
    """Return a drawing of fractions with intervals, upright in percent, over a logarithmic axis; the marks are
    numbered, and below the axes are their names, each above its note."""
    ends = [100 * end for mark in marks for end in (*(mark.interval or ()), mark.value)]
    low, high = _padded(min(ends), max(ends))
    logs = [math.log10(mark.x) for mark in marks]
    first, last = min(logs) - 0.15, max(logs) + 0.15
    left, top, bottom = 54, 28, 250

    def across(x: float) -> float:
        return left + (_RIGHT - left) * (math.log10(x) - first) / (last - first)

    def up(percent: float) -> float:
        return bottom - (bottom - top) * (percent - low) / (high - low)

    parts = [_text(_LEFT, 14, ylabel)]
    for tick in _ticks(low, high):
        parts.append(_line(left, up(tick), _RIGHT, up(tick), ' stroke-opacity="0.15"'))
        parts.append(_text(left - 6, up(tick) + 4, f"{tick:g}%", "end"))
    decades = range(math.floor(first), math.ceil(last) + 1)
    for x in (part * 10.0**decade for decade in decades for part in (1, 2, 3, 5)):
        if first <= math.log10(x) <= last:
            parts.append(_line(across(x), bottom, across(x), bottom + 4))
            parts.append(_text(across(x), bottom + 17, f"{x:g}", "middle"))
    parts += [_line(left, bottom, _RIGHT, bottom), _text(_WIDTH / 2, bottom + 34, xlabel, "middle")]
    for number, mark in enumerate(marks, start=1):
        x, y, below, color = across(mark.x), up(100 * mark.value), bottom + 20 + 36 * number, COLORS[mark.color]
        if mark.interval:
            parts.append(
                _line(x, up(100 * mark.interval[0]), x, up(100 * mark.interval[1]), ' stroke-width="2"', color)
            )
        for at_x, at_y in ((x, y), (_LEFT + 8, below)):
            parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="8" fill="{color}"/>')
            parts.append(_text(at_x, at_y + 4, str(number), "middle", ' font-size="11" fill="#fff"'))
        parts += [_text(_LEFT + 22, below + 4 + down, text) for down, text in ((0, mark.name), (_LINE, mark.note))]
    return _svg(parts, bottom + 52 + 36 * len(marks))


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.06 * (high - low or 1)
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers in between, at least three."""
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(step * part for part in (5, 2, 1) if (high - low) / (step * part) >= 3)
    return [round(step * place, 10) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(x: float, y: float, to_x: float, to_y: float, style: str = "", color: str = "currentColor") -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{color}"{style}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(shown(text))}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="drawn" viewBox="0 0 {_WIDTH} {height:.0f}"'
    font = 'font-family="system-ui, sans-serif" font-size="13" fill="currentColor"'
    return "\n".join([f"{head} {font}>", _STYLE, *parts, "</svg>"]) + "\n"
