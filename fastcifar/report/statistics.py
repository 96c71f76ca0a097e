"""Mean, spread and interval of repeated runs. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fastcifar.errors import UserError


@dataclass(frozen=True)
class Summary:
    """Mean, spread and interval of n results. Of one result only the mean is known: the others are None."""

    n: int
    """Number of results."""
    mean: float
    """Their arithmetic mean."""
    std: float | None
    """Sample standard deviation (divisor n - 1)."""
    interval: tuple[float, float] | None
    """95% confidence interval of the mean: mean ± t · std / sqrt(n), Student's t with n - 1 degrees of freedom."""


def summarize(values: Sequence[float]) -> Summary:
    """Return the summary of `values`. Raises UserError if there are none."""
    n = len(values)
    if n == 0:
        raise UserError("nothing to summarize: 0 values; allowed: 1 or more")
    mean = statistics.fmean(values)
    if n == 1:
        return Summary(1, mean, None, None)
    std = statistics.stdev(values)
    half = t_quantile(0.975, n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, (mean - half, mean + half))


def t_quantile(probability: float, df: int) -> float:
    """Return the t below which a Student variable with `df` degrees of freedom (whole) falls with `probability`.

    Inverts the exact finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4) by bisection on
    the angle atan(t / sqrt(df)). Raises UserError for a probability outside 0 to 1, exclusive, or df below 1.
    """
    if not 0 < probability < 1:
        raise UserError(f"probability is {probability!r}; allowed: above 0, below 1")
    if df < 1:
        raise UserError(f"df is {df!r}; allowed: 1 or more")
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    inside = 2 * probability - 1  # the mass between -t and t
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mass(middle, df) < inside else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _mass(angle: float, df: int) -> float:
    """Return the chance that |T| < tan(angle) * sqrt(df)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    first = df % 2 + 2  # the series' terms run over even or odd numbers, as df is
    term = total = cosine if df % 2 else 1.0
    for k in range(first, df, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    if df % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if df > 1 else 0.0))
