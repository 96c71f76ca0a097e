"""Experiments of many runs, each kept as it is finished, so that an interrupted experiment goes on where it was."""

from fastcifar.experiments.ablate import Ablation, ablate
from fastcifar.experiments.compare import Comparison, compare
from fastcifar.experiments.half import HalfResult, half
from fastcifar.experiments.online import OnlineResult, online
from fastcifar.experiments.outcome import Diverged, Outcome
from fastcifar.experiments.runs import Progress
from fastcifar.experiments.store import Store
from fastcifar.experiments.table import TableResult, table
from fastcifar.experiments.verify import Effect, Verification, verify_tricks
from fastcifar.experiments.write import draw, write

__all__ = [
    "Ablation",
    "Comparison",
    "Diverged",
    "Effect",
    "HalfResult",
    "OnlineResult",
    "Outcome",
    "Progress",
    "Store",
    "TableResult",
    "Verification",
    "ablate",
    "compare",
    "draw",
    "half",
    "online",
    "table",
    "verify_tricks",
    "write",
]
