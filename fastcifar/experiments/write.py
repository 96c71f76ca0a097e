"""An experiment's result as files."""

from __future__ import annotations

import json
from pathlib import Path

from fastcifar.experiments.half import HalfResult
from fastcifar.experiments.online import OnlineResult
from fastcifar.experiments.store import write_whole
from fastcifar.experiments.table import TableResult

Result = HalfResult | OnlineResult | TableResult


def write(result: Result, folder: str | Path) -> list[Path]:
    """Write results.json (all numbers with n and intervals), runs.json (in the form of the notebook's results) and
    table.md to `folder`, in the place of earlier ones. Raises UserError where that cannot be done."""
    folder = Path(folder)
    heading = f"# {result.settings['experiment']}: {result.settings['recipe']['name']}, {result.settings['dataset']}"
    tables = "\n".join(table.markdown() for table in result.tables())
    contents = {
        "results.json": json.dumps(result.to_dict(), indent=2) + "\n",
        "runs.json": json.dumps(result.notebook()) + "\n",
        "table.md": f"{heading}\n\n{tables}\n" + "".join(f"{line}\n" for line in result.remarks()),
    }
    for name, text in contents.items():
        write_whole(folder / name, text)
    return [folder / name for name in contents]


def draw(result: Result, folder: str | Path) -> list[Path]:
    """Save the result's figures in `folder` as PNG, SVG and PDF. Raises UserError where matplotlib is missing."""
    return [file for name, figure in result.figures().items() for file in figure.save(Path(folder) / name)]
