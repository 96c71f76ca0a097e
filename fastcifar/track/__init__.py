"""Trackers: listeners that send a training's metrics and its configuration to TensorBoard, Weights & Biases or a CSV
file, under the names that courses use. See docs/tracking.md.

Importing this needs no torch, so that a command refuses what is missing before it loads it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fastcifar.track.packages import TRACKED, refuse_missing

if TYPE_CHECKING:
    from fastcifar.track.csv import CSV
    from fastcifar.track.tensorboard import TensorBoard
    from fastcifar.track.tracker import METRICS, Tracker
    from fastcifar.track.wandb import WandB

__all__ = ["CSV", "METRICS", "TRACKED", "TensorBoard", "Tracker", "WandB", "refuse_missing", "tracker_in"]

_HOMES = {"CSV": "csv", "TensorBoard": "tensorboard", "WandB": "wandb", "Tracker": "tracker", "METRICS": "tracker"}


def tracker_in(folder: Path, kind: str) -> Tracker:
    """Return the tracker of `kind`, one of `TRACKED`, that writes below `folder`. Raises UserError where its package is
    missing."""
    if kind == "csv":
        return import_module("fastcifar.track.csv").CSV(folder / "metrics.csv")
    if kind == "tensorboard":
        return import_module("fastcifar.track.tensorboard").TensorBoard(folder)
    return import_module("fastcifar.track.wandb").WandB(dir=folder)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastcifar.track' has no attribute {name!r}")
    return getattr(import_module(f"fastcifar.track.{_HOMES[name]}"), name)
