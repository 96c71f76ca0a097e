"""Experiments of many runs, each kept as it is finished, so that an interrupted experiment goes on where it was."""

from fastcifar.experiments.ablate import Ablation, ablate
from fastcifar.experiments.compare import Comparison, compare
from fastcifar.experiments.half import HalfResult, half
from fastcifar.experiments.online import OnlineResult, online
from fastcifar.experiments.outcome import Diverged, Outcome
from fastcifar.experiments.runs import Progress
from fastcifar.experiments.store import Store
from fastcifar.experiments.table import TableResult, table
from fastcifar.experiments.write import draw, write

__all__ = [
    "Ablation",
    "Comparison",
    "Diverged",
    "HalfResult",
    "OnlineResult",
    "Outcome",
    "Progress",
    "Store",
    "TableResult",
    "ablate",
    "compare",
    "draw",
    "half",
    "online",
    "table",
    "write",
]
