"""Statistics, tables and figures of repeated runs, and the runs that folders keep."""

from fastcifar.report.figures import Figure, Line
from fastcifar.report.runs import AtTarget, FailedRun, KeptRuns, Runs, read_runs
from fastcifar.report.statistics import Summary, TTest, summarize, t_quantile
from fastcifar.report.tables import Table, counted, percent, points, seconds

__all__ = [
    "AtTarget",
    "FailedRun",
    "Figure",
    "KeptRuns",
    "Line",
    "Runs",
    "Summary",
    "TTest",
    "Table",
    "counted",
    "percent",
    "points",
    "read_runs",
    "seconds",
    "summarize",
    "t_quantile",
]
