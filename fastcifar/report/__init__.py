"""What many runs say together."""

from fastcifar.report.statistics import Summary, summarise, t_quantile

__all__ = ["Summary", "summarise", "t_quantile"]
