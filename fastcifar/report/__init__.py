"""Statistics, tables and figures of repeated runs, and the runs that folders keep."""

from fastcifar.report.by_class import by_class_table, confusion_matrix, precision_recall
from fastcifar.report.figures import Figure, Line
from fastcifar.report.robustness import (
    AccuracyPair,
    Baseline,
    EffectiveRobustness,
    effective_robustness,
    fit_baseline,
    plot_effective_robustness,
    published_baseline,
    published_pairs,
)
from fastcifar.report.runs import AtTarget, FailedRun, KeptRuns, Runs, read_runs
from fastcifar.report.statistics import Summary, TTest, summarize, t_quantile
from fastcifar.report.tables import Table, counted, percent, points, seconds

__all__ = [
    "AccuracyPair",
    "AtTarget",
    "Baseline",
    "EffectiveRobustness",
    "FailedRun",
    "Figure",
    "KeptRuns",
    "Line",
    "Runs",
    "Summary",
    "TTest",
    "Table",
    "by_class_table",
    "confusion_matrix",
    "counted",
    "effective_robustness",
    "fit_baseline",
    "percent",
    "plot_effective_robustness",
    "points",
    "precision_recall",
    "published_baseline",
    "published_pairs",
    "read_runs",
    "seconds",
    "summarize",
    "t_quantile",
]
