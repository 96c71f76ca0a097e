"""Tests of a sample's mean after every new value, as often as one likes, without more false alarms. Standard library
only.

The method: the t-test's mixture e-process and its confidence sequence (Lai 1976; Wang and Ramdas, "Anytime-valid
t-tests and confidence sequences for Gaussian means with unknown variance", 2024). Values are taken to be independent
and normal with unknown mean and variance. Let t be Student's statistic of the first n of them for the mean m. Were the
true mean m + d standard deviations, with d drawn from a normal distribution of variance g around 0, t would have a
density that many times larger than with d = 0:

    e = (1 + n g)^(-1/2) * ((1 + t²/(n - 1)) / (1 + t²/((n - 1)(1 + n g))))^(n/2)

If m is the true mean, e is a martingale in n that begins at 1, whatever the variance, and so the chance that it ever
reaches 1/alpha is at most alpha (Ville 1939): exact for every n, without approximation. The means for which it has not
reached that are the confidence sequence: with a chance of at least 1 - alpha they contain the true one at all n at
once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from fastcifar.errors import UserError

EFFECT_VARIANCE = 1.0
"""g: effects of about one standard deviation of the values are what is found soonest; any other is found too, later."""


def e_value(values: Sequence[float], mean: float = 0.0) -> float:
    """Return the evidence of `values` against the true mean `mean`; 1: none, as for fewer than two values."""
    n = len(values)
    if n < 2:
        return 1.0
    center, square_sum = _moments(values)
    excess = n * (center - mean) ** 2
    if excess == square_sum == 0:  # all values equal `mean`
        return 1.0
    spread = 1 + n * EFFECT_VARIANCE
    ratio = (square_sum + excess) / (square_sum + excess / spread)  # t² / (n - 1) is excess / square_sum
    return math.exp(min(700.0, n / 2 * math.log(ratio) - 0.5 * math.log(spread)))


def interval(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float] | None:
    """Return the interval of the means against which the evidence of `values` is below 1 / `alpha`; None: every mean,
    as for the first few values. Valid at all numbers of values at once with a chance of 1 - `alpha`."""
    check_alpha(alpha)
    n = len(values)
    if n < 2:
        return None
    center, square_sum = _moments(values)
    spread = 1 + n * EFFECT_VARIANCE
    log_limit = (math.log(spread) - 2 * math.log(alpha)) / n  # of ratio in e_value, where e is 1 / alpha
    if log_limit >= math.log(spread):
        return None
    limit = math.exp(log_limit)
    half = math.sqrt(square_sum / n * (limit - 1) / (1 - limit / spread))
    return center - half, center + half


def check_alpha(alpha: float) -> None:
    """Raise UserError unless `alpha` is a chance of false alarms."""
    if not 0 < alpha < 1:
        raise UserError(f"alpha is {alpha:g}; allowed: above 0, below 1")


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the sum of squared deviations from it."""
    center = statistics.fmean(values)
    return center, math.fsum((value - center) ** 2 for value in values)
