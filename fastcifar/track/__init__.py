"""Trackers: listeners that send a training's metrics and its configuration to TensorBoard, Weights & Biases or a CSV
file, under the names that courses use. See docs/tracking.md.

Importing this needs no torch, so that a command refuses what is missing before it loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastcifar.track.packages import TRACKED

if TYPE_CHECKING:
    from fastcifar.track.tracker import Tracker

__all__ = ["TRACKED", "tracker_in"]


def tracker_in(folder: Path, kind: str) -> Tracker:
    """Return the tracker of `kind`, one of `TRACKED`, that writes below `folder`. Raises UserError where its package is
    missing."""
    if kind == "csv":
        from fastcifar.track.csv import CSV

        return CSV(folder / "metrics.csv")
    if kind == "tensorboard":
        from fastcifar.track.tensorboard import TensorBoard

        return TensorBoard(folder)
    from fastcifar.track.wandb import WandB

    return WandB(dir=folder)
