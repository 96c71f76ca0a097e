"""Images in rows with names, each as sharp as it is. Matplotlib, the extra `plot`, draws them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.output import write_whole
from fastcifar.report.figures import drawing

FORMATS = (".png", ".svg")
_DPI = 100
_LETTER, _LINE, _GAP, _EDGE = 7, 15, 4, 14
"""Pixels: of a letter, of a line of text, between images, around all."""
_NARROWEST = 640
"""Pixels of a picture's width, for its title."""
_MOST_PIXELS = 2**26
_LONGEST, _LONGEST_NAME = 600, 32
"""Characters of the title, and of a name."""


@dataclass(frozen=True)
class Mosaic:
    """Rows of images."""

    title: str
    rows: Sequence[Sequence[np.ndarray | None]]
    """uint8 `[H, W, 3]`; a smaller one is drawn smaller, in the middle of its place. None: there is none."""
    names: Sequence[str] = ()
    """One for each row, to its left; none where empty."""
    heads: Sequence[str] = ()
    """One for each column; none where empty. A name or a head may have several lines."""
    notes: Sequence[Sequence[str]] = ()
    """A few characters under each image; none where empty."""
    absent: str = ""
    """What is written in the place of an image that there is none of."""
    cell: int = 96
    """Pixels that the largest image is to fill at most, each of its own being so many times larger; one that has more
    is drawn as it is."""
    blocks: int = 1
    """The rows stand in so many columns beside one another."""

    def save(self, file: Path) -> None:
        """Draw it in `file`, whose name ends as one of `FORMATS`, whole or not at all.

        Raises UserError where matplotlib is missing, for a picture of too many pixels, and where the file cannot be
        written.
        """
        kind, where = file.suffix.lower()[1:], self._layout()
        with drawing():
            from matplotlib.figure import Figure as Canvas  # pyright: ignore[reportMissingImports]  (an extra)

            canvas = Canvas(figsize=(where.width / _DPI, where.height / _DPI), dpi=_DPI)
            axes = canvas.add_axes((0, 0, 1, 1))
            axes.axis("off")
            pixels = self._pixels(where)
            axes.imshow(pixels, extent=(0, where.width, where.height, 0), interpolation="none", aspect="auto")
            axes.text(_EDGE, _EDGE, where.title, va="top", fontsize=9, linespacing=1.2)
            for block in range(self.blocks):
                for column, head in enumerate(self.heads):
                    x = where.left(block, column) + where.across / 2
                    axes.text(x, where.top - _GAP, _lines(head), ha="center", va="bottom", fontsize=8)
            for number, row in enumerate(self.rows):
                block, line = divmod(number, where.lines)
                x, y = where.left(block, 0), where.top + line * where.pitch
                if self.names:
                    name = _lines(self.names[number])
                    axes.text(x - 2 * _GAP, y + where.down / 2, name, ha="right", va="center", fontsize=8)
                for column, image in enumerate(row):
                    middle = where.left(block, column) + where.across / 2
                    if image is None and self.absent:
                        how = {"ha": "center", "va": "center", "fontsize": 7, "color": "dimgray"}
                        axes.text(middle, y + where.down / 2, _lines(self.absent), **how)
                    elif self.notes:
                        how = {"ha": "center", "va": "top", "fontsize": 6, "color": "dimgray"}
                        axes.text(middle, y + where.down + 1, shown(self.notes[number][column], _LONGEST_NAME), **how)
            metadata = {"Date": None} if kind == "svg" else None
            write_whole(file, lambda part: canvas.savefig(part, format=kind, dpi=_DPI, metadata=metadata))

    def _layout(self) -> _Layout:
        sides = [image.shape[:2] for row in self.rows for image in row if image is not None]
        tall, wide = (max((side[axis] for side in sides), default=1) for axis in (0, 1))
        zoom = max(1, self.cell // max(tall, wide))
        columns = max(map(len, self.rows), default=0)
        longest = max((len(line) for name in self.names for line in _lines(name).split("\n")), default=0)
        margin = longest * _LETTER + 2 * _GAP if longest else 0
        block = margin + columns * (wide * zoom + _GAP)
        width = max(_NARROWEST, self.blocks * (block + _EDGE) + _EDGE)
        title = textwrap.fill(shown(self.title, _LONGEST), (width - 2 * _EDGE) // _LETTER)
        head = max((head.count("\n") + 1 for head in self.heads), default=0)
        top = _EDGE + (title.count("\n") + 1 + head) * _LINE + 2 * _GAP
        lines = -(-len(self.rows) // self.blocks)
        pitch = tall * zoom + _GAP + (10 if self.notes else 0)
        height = top + lines * pitch + _EDGE
        if width * height > _MOST_PIXELS:
            said = f"the picture would have {width:,} x {height:,} pixels"
            raise UserError(f"{said}; allowed: up to {_MOST_PIXELS:,} in all, by fewer or smaller images")
        return _Layout(width, height, title, top, margin, block, lines, pitch, wide * zoom, tall * zoom, zoom)

    def _pixels(self, where: _Layout) -> np.ndarray:
        """Return the whole picture without its texts, uint8 `[height, width, 3]`."""
        pixels = np.full((where.height, where.width, 3), 255, np.uint8)
        for number, row in enumerate(self.rows):
            block, line = divmod(number, where.lines)
            for column, image in enumerate(row):
                if image is not None:
                    large = image.repeat(where.zoom, 0).repeat(where.zoom, 1)
                    y = where.top + line * where.pitch + (where.down - len(large)) // 2
                    x = where.left(block, column) + (where.across - large.shape[1]) // 2
                    pixels[y : y + len(large), x : x + large.shape[1]] = large
        return pixels


@dataclass(frozen=True)
class _Layout:
    """Where all is in the picture, in its pixels."""

    width: int
    height: int
    title: str
    top: int
    """Of the first row."""
    margin: int
    """Of the names."""
    block: int
    lines: int
    """Rows of a block."""
    pitch: int
    """From a row to the next."""
    across: int
    down: int
    """Of an image's place."""
    zoom: int
    """Pixels of the picture, across and down, for each of an image."""

    def left(self, block: int, column: int) -> int:
        """Return where the images of a column begin."""
        return _EDGE + block * (self.block + _EDGE) + self.margin + column * (self.across + _GAP)


def _lines(text: str) -> str:
    """Return a text of one or more lines as it is shown."""
    return "\n".join(shown(line, _LONGEST_NAME) for line in text.split("\n"))
