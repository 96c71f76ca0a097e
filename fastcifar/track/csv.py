"""Metrics as a CSV file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcifar.errors import UserError
from fastcifar.output import user_path, write_whole
from fastcifar.track.tracker import METRICS, Metrics, Tracker


class CSV(Tracker):
    """Writes a line for each epoch to `path`, and the configuration as JSON to the file of its name that ends in
    .json, in place of what an earlier training left there.

    The columns are `METRICS`; a value that was not measured is empty. The file is whole whenever it is read. Raises
    UserError for what is no path, and for one that ends in .json.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = user_path(path, "the file of metrics")
        if self.path.suffix == ".json":
            raise UserError(f"the file of metrics is {path}; allowed: another ending, as .json is the configuration's")
        self._rows: list[Metrics] = []

    def begin(self, name: str, config: dict[str, Any], told: Sequence[Metrics]) -> None:
        self._rows = list(told)
        write_whole(self.path.with_suffix(".json"), json.dumps({"run": name, **config}, indent=2) + "\n")
        self._write()

    def note(self, metrics: Metrics) -> None:
        self._rows.append(metrics)
        self._write()

    def _write(self) -> None:
        text = io.StringIO()
        names: list[str] = list(METRICS)
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_whole(self.path, text.getvalue())
