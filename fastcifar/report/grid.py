"""A few images with what they are and what a network takes them for. Matplotlib, the extra `plot`, draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcifar.escape import shown
from fastcifar.output import write_whole
from fastcifar.report.figures import drawing

MOST = 20
"""Images in a grid."""
_COLUMNS = 5
_LONGEST = 22
_RIGHT, _WRONG, _UNKNOWN = "tab:green", "tab:red", "black"


def spread(count: int, most: int = MOST) -> list[int]:
    """Return the places of the images of a picture among `count`: up to `most`, evenly spread, as those of folders are
    sorted by class."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def save_grid(
    file: Path, images: np.ndarray, labels: Sequence[int], predicted: Sequence[int], names: Sequence[str]
) -> None:
    """Draw images with the names of their true class, where it is known, and of the predicted one, green or red.

    file: a .png, written whole or not at all.
    images: uint8 `[N, H, W, 3]`.
    labels, predicted: the classes of each; a label of -1 is none.
    names: of the classes.

    Raises UserError where matplotlib is missing or the file cannot be written.
    """
    rows = -(-len(images) // _COLUMNS)
    with drawing():
        from matplotlib.figure import Figure as Canvas  # pyright: ignore[reportMissingImports]  (an extra)

        canvas = Canvas(figsize=(1.8 * _COLUMNS, 2.2 * rows), layout="constrained")
        cells = canvas.subplots(rows, _COLUMNS, squeeze=False).flat
        for axes in cells:
            axes.set_axis_off()
        for axes, image, label, taken in zip(canvas.axes, images, labels, predicted, strict=False):
            axes.imshow(image)
            true = f"true: {shown(names[label], _LONGEST)}\n" if label >= 0 else ""
            color = _UNKNOWN if label < 0 else _RIGHT if label == taken else _WRONG
            axes.set_title(f"{true}predicted: {shown(names[taken], _LONGEST)}", fontsize="small", color=color)
        write_whole(file, lambda part: canvas.savefig(part, dpi=130))
