"""Mean, spread and interval of repeated runs. Standard library only."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True)
class TTest:
    """Student's one-sided t-test of a mean against a target."""

    t: float
    """(mean - target) / (std / sqrt(n))."""
    df: int
    """Degrees of freedom: n - 1."""
    p: float
    """The chance of such a t, or a larger one, where the true mean is the target; smaller yet where it is below."""


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


def t_test(values: Sequence[float], target: float) -> TTest | None:
    """Return Student's one-sided test of `values` against the hypothesis that their true mean is at most `target`.

    None where there is none: of fewer than two values, and of equal ones, whose spread says nothing.
    """
    n = len(values)
    if n < 2 or min(values) == max(values):
        return None
    t = (statistics.fmean(values) - target) / (statistics.stdev(values) / math.sqrt(n))
    return TTest(t, n - 1, t_tail(t, n - 1))


def t_tail(t: float, df: int) -> float:
    """Return the chance that a Student variable with `df` degrees of freedom (whole) is `t` or more, also a tiny one to
    full precision. Raises UserError for df below 1."""
    if df < 1:
        raise UserError(f"df is {df!r}; allowed: 1 or more")
    if t < 0:
        return 1 - t_tail(-t, df)
    cosine, sine = math.sqrt(df) / math.hypot(math.sqrt(df), t), t / math.hypot(math.sqrt(df), t)
    terms = _terms(cosine, df % 2)
    before = math.fsum(itertools.islice(terms, df // 2))
    inside = sine * before if df % 2 == 0 else 2 / math.pi * (math.atan2(sine, cosine) + sine * before)
    if inside < 0.5:
        return (1 - inside) / 2
    # The terms from `df` on, as those of all k make 1: nothing is subtracted. Each is less than cosine² of the last.
    rest = [next(terms)]
    while rest[-1] > 1e-17 * rest[0] * (1 - cosine * cosine):
        rest.append(next(terms))
    return math.fsum(rest) * sine * (1 / math.pi if df % 2 else 0.5)


def share_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a chance of which `count` of `n` tries came true (Clopper and Pearson 1934): it holds the
    true one with a chance of at least `confidence`, whatever n. Raises UserError for counts that cannot be."""
    if not 0 <= count <= n or n < 1:
        raise UserError(f"{count} of {n} cannot be a share; allowed: 0 to n of n, 1 or more")
    if count < n - count:
        low, high = share_interval(n - count, n, confidence)
        return 1 - high, 1 - low
    tail = (1 - confidence) / 2
    log_ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(count, n + 1)]

    def at_least(chance: float, least: int) -> float:
        yes, no = math.log(chance), math.log1p(-chance)
        return math.fsum(math.exp(log_ways[k - count] + k * yes + (n - k) * no) for k in range(least, n + 1))

    high = 1.0 if count == n else _root(lambda chance: at_least(chance, count + 1), 1 - tail)
    return _root(lambda chance: at_least(chance, count), tail), high


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a chance of which `count` of `n` tries came true (Wilson 1927): as `share_interval` where
    they are many, without its sums. Raises UserError for counts that cannot be."""
    if not 0 <= count <= n or n < 1:
        raise UserError(f"{count} of {n} cannot be a share; allowed: 0 to n of n, 1 or more")
    z, share = statistics.NormalDist().inv_cdf((1 + confidence) / 2), count / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half) if count else 0.0, min(1.0, middle + half) if count < n else 1.0  # without rounding


def _root(rising: Callable[[float], float], value: float) -> float:
    """Return the chance at which a function that rises from 0 to 1 is `value`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle == 1 or rising(middle) < value else (low, middle)
    return (low + high) / 2


def _mass(angle: float, df: int) -> float:
    """Return the chance that |T| < tan(angle) * sqrt(df)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    total = sum(itertools.islice(_terms(cosine, df % 2), df // 2))
    return sine * total if df % 2 == 0 else 2 / math.pi * (angle + sine * total)


def _terms(cosine: float, first: int) -> Iterator[float]:
    """Give the terms of the sums over even (`first` 0) or odd (1) k without end: that of k = first, first + 2, ..."""
    term = cosine if first else 1.0
    for k in itertools.count(first + 2, 2):
        yield term
        term *= (k - 1) / k * cosine * cosine
