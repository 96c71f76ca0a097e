import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.report import summarize, t_quantile

TABLE = {  # two-sided 95% and 99% points of Student's t, from printed tables
    1: (12.7062, 63.6567),
    2: (4.3027, 9.9248),
    3: (3.1824, 5.8409),
    4: (2.7764, 4.6041),
    5: (2.5706, 4.0321),
    9: (2.2622, 3.2498),
    10: (2.2281, 3.1693),
    29: (2.0452, 2.7564),
    30: (2.0423, 2.7500),
    100: (1.9840, 2.6259),
}


@pytest.mark.parametrize("df", TABLE)
def test_t_quantiles_are_those_of_the_tables(df):
    assert t_quantile(0.975, df) == pytest.approx(TABLE[df][0], abs=5e-5)
    assert t_quantile(0.995, df) == pytest.approx(TABLE[df][1], abs=5e-5)


def test_t_quantiles_tend_to_the_normal_ones():
    assert t_quantile(0.975, 100_000) == pytest.approx(1.959964, abs=5e-5)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.001, 0.999))
def test_two_degrees_of_freedom_have_a_closed_form(probability):
    alpha = 4 * probability * (1 - probability)
    closed = 2 * (probability - 0.5) * math.sqrt(2 / alpha)
    assert t_quantile(probability, 2) == pytest.approx(closed, abs=1e-6)


@pytest.mark.parametrize(("probability", "df"), [(0.0, 3), (1.0, 3), (math.nan, 3), (0.9, 0)])
def test_a_quantile_that_does_not_exist_is_refused(probability, df):
    with pytest.raises(UserError, match="allowed"):
        t_quantile(probability, df)


def test_a_summary_of_three_values():
    summary = summarize([0.94, 0.941, 0.942])
    half = 4.302653 * 0.001 / math.sqrt(3)
    assert (summary.n, summary.mean, summary.std) == (3, pytest.approx(0.941), pytest.approx(0.001))
    assert summary.interval == (pytest.approx(0.941 - half), pytest.approx(0.941 + half))


def test_one_value_has_no_spread_and_no_interval():
    summary = summarize([0.94])
    assert (summary.n, summary.mean, summary.std, summary.interval) == (1, 0.94, None, None)


def test_no_values_are_refused():
    with pytest.raises(UserError, match="0 values"):
        summarize([])
