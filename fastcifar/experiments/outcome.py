"""What is kept of a run of an experiment: its record, or that it diverged."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from fastcifar.errors import RenamedWarning, UserError
from fastcifar.experiments.store import Store
from fastcifar.training import RunRecord

_DIVERGED = "diverged"


@dataclass(frozen=True)
class Diverged:
    """A run whose loss became NaN or infinite, of which nothing else is kept."""

    reason: str
    """What was said of it."""

    def to_json(self) -> dict[str, str]:
        """What the store holds in the place of a record."""
        return {_DIVERGED: self.reason}


Outcome = RunRecord | Diverged


def get_outcome(store: Store, key: str) -> Outcome | None:
    """What `store` holds of the run `key`; None: nothing. Raises UserError for a file that holds something else."""
    values = store.get(key)
    if values is None:
        return None
    if _DIVERGED in values:
        return Diverged(str(values[_DIVERGED]))
    return read_record(store, key, values)


def read_record(store: Store, key: str, values: dict[str, Any]) -> RunRecord:
    """Return the record in what `store` holds of the run `key`. Raises UserError for a file that holds something else.

    What older ones called a recipe's fields was said of the settings: it is not said again of every run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RenamedWarning)
        return RunRecord.from_json(values, str(store.path(key)))


def known(value: float | None) -> float:
    """An accuracy or a loss that an experiment's run must have. Raises UserError for one that was not measured."""
    if value is None:
        raise UserError("a kept run has no accuracy or loss; allowed: runs on images with labels, in a new folder")
    return value
