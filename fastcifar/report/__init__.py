"""Statistics, tables and figures of repeated runs."""

from fastcifar.report.figures import Figure, Line
from fastcifar.report.statistics import Summary, summarize, t_quantile
from fastcifar.report.tables import Table, counted, percent, points, seconds

__all__ = ["Figure", "Line", "Summary", "Table", "counted", "percent", "points", "seconds", "summarize", "t_quantile"]
