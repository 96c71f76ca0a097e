"""The anytime-valid t-test: its formula, its false alarms and its power, by simulation with a fixed seed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.report import summarize, t_quantile
from fastcifar.report.sequential import EFFECT_VARIANCE, e_value, interval

LOOKS = 200
ALPHA = 0.05


def e_values(values):
    """Return `e_value` after each of the `values` [trials, n], computed in bulk; checked against it below."""
    n = np.arange(1, values.shape[1] + 1)
    mean = values.cumsum(1) / n
    square_sum = np.maximum((values**2).cumsum(1) - n * mean**2, 1e-300)
    spread = 1 + n * EFFECT_VARIANCE
    t2 = n * mean**2 / square_sum
    log = n / 2 * (np.log1p(t2) - np.log1p(t2 / spread)) - np.log(spread) / 2
    log[:, 0] = 0
    return np.exp(np.minimum(log, 700))


def test_the_bulk_formula_of_these_tests_is_the_libraries():
    values = np.random.default_rng(0).normal(0.3, 2, (3, 20))
    bulk = e_values(values)
    for row, expected in zip(values, bulk, strict=True):
        assert [e_value(row[:n].tolist()) for n in range(1, 21)] == pytest.approx(expected.tolist())


def test_the_e_value_is_the_ratio_of_the_densities_it_claims():
    """With the density of the noncentral t integrated over the effect numerically: for n = 3 values."""
    values = [0.3, 1.1, 0.8]
    n, mean = len(values), sum(values) / 3
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    # Up to factors without d, the density of the values' shape given the effect d is the integral over the scale s of
    # s^(-n-1) exp(-sum((x/s - d)^2)/2): integrate it, and average it over d.
    log_scales = np.linspace(math.log(std) - 8, math.log(std) + 8, 4001)
    scaled = np.array(values)[:, None] / np.exp(log_scales)

    def density(d):
        return np.sum(np.exp(-n * log_scales - 0.5 * ((scaled - d) ** 2).sum(0)))

    effects = np.linspace(-8, 8, 1601)
    prior = np.exp(-(effects**2) / (2 * EFFECT_VARIANCE))
    averaged = sum(weight * density(d) for weight, d in zip(prior / prior.sum(), effects, strict=True))
    assert e_value(values) == pytest.approx(averaged / density(0.0), rel=1e-6)


def test_the_smallest_alpha_has_an_interval_once_there_are_values_enough():
    values = [0.1, 0.2, 0.3]
    assert interval(values, 5e-324) is None
    low, high = interval(values * 1000, 5e-324)
    assert low < 0.2 < high
    e = [e_value(values * 100, end) for end in interval(values * 100, 1e-170)]
    assert [math.log10(each) for each in e] == pytest.approx([170, 170])


def test_looking_200_times_raises_false_alarms_in_at_most_alpha_of_the_cases():
    trials = 20_000
    values = np.random.default_rng(1).normal(0, 3, (trials, LOOKS))
    share = (e_values(values).max(1) >= 1 / ALPHA).mean()
    assert share <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / trials)
    assert share > 0.01  # not merely because nothing is ever found


def test_a_fixed_interval_looked_at_200_times_would_not_keep_its_promise():
    """Why there is a sequence: Student's 95% interval excludes the truth at one of the looks in every third case."""
    values = np.random.default_rng(2).normal(0, 1, (2_000, LOOKS))
    n = np.arange(1, LOOKS + 1)
    mean = values.cumsum(1) / n
    std = np.sqrt(np.maximum((values**2).cumsum(1) - n * mean**2, 0)[:, 1:] / (n[1:] - 1))
    student = np.array([t_quantile(1 - ALPHA / 2, looked - 1) for looked in n[1:].tolist()])
    assert (np.abs(mean[:, 1:]) > student * std / np.sqrt(n[1:])).any(1).mean() > 0.3


def test_a_difference_of_one_standard_deviation_is_found_within_some_twenty_values():
    values = np.random.default_rng(3).normal(1, 1, (5_000, 40))
    crossed = e_values(values) >= 1 / ALPHA
    assert crossed[:, :20].any(1).mean() > 0.85
    assert crossed.any(1).mean() > 0.99
    assert np.median(crossed.argmax(1) + 1) < 15


def test_half_a_standard_deviation_takes_longer_and_is_found_too():
    crossed = e_values(np.random.default_rng(4).normal(0.5, 1, (2_000, LOOKS))) >= 1 / ALPHA
    assert crossed.any(1).mean() > 0.99
    assert 25 < np.median(crossed.argmax(1) + 1) < 60


@settings(max_examples=100)
@given(st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=5, max_size=30))
def test_the_interval_ends_where_the_evidence_reaches_its_limit(values):
    bounds = interval(values, ALPHA)
    assert bounds is not None
    low, high = bounds
    if high - low < 1e-6:
        return
    for bound in bounds:
        assert e_value(values, bound) == pytest.approx(1 / ALPHA, rel=1e-6)
    assert e_value(values, (low + high) / 2) < 1 / ALPHA
    assert e_value(values, high + (high - low)) > 1 / ALPHA


@settings(max_examples=50)
@given(st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=30), st.floats(0.01, 100))
def test_units_do_not_matter(values, scale):
    assert e_value([scale * value for value in values]) == pytest.approx(e_value(values), rel=1e-6)


def test_the_first_four_values_say_nothing_yet_and_the_fifth_can():
    assert interval([1.0, 2.0, 3.0, 4.0]) is None
    low, high = interval([1.0, 1.1, 0.9, 1.0, 1.05])
    assert 0 < low < 1 < high


def test_it_is_wider_than_the_interval_of_a_single_look():
    values = np.random.default_rng(5).normal(0, 1, 30).tolist()
    low, high = interval(values)
    student = summarize(values).interval
    assert low < student[0] and high > student[1]


def test_values_without_spread():
    assert e_value([0.0] * 20) == 1.0
    assert interval([0.0] * 20) == (0.0, 0.0)
    assert e_value([1.0] * 5) == pytest.approx(6**2)  # t is infinite: the most that five values can say
    assert e_value([1.0]) == 1.0
    assert interval([]) is None


def test_a_chance_that_is_none_is_refused():
    with pytest.raises(UserError, match="alpha is 0; allowed"):
        interval([1.0, 2.0], alpha=0)
