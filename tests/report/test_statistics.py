import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.report import summarize, t_quantile
from fastcifar.report.statistics import share_interval, t_tail, t_test, wilson_interval

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


@settings(max_examples=50)
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


TAILS = {  # chances of a Student variable to be t or more, from printed tables and closed forms
    (1, 1.0): 0.25,
    (1, 6.313752): 0.05,
    (2, 2.919986): 0.05,
    (4, 2.131847): 0.05,
    (9, 1.833113): 0.05,
    (9, 4.296806): 0.001,
    (10, 2.763769): 0.01,
    (29, 1.699127): 0.05,
    (30, 3.385185): 0.001,
    (199, 1.652547): 0.05,
}


@pytest.mark.parametrize(("df", "t"), TAILS)
def test_tails_are_those_of_the_tables(df, t):
    assert t_tail(t, df) == pytest.approx(TAILS[df, t], rel=2e-6)


@settings(max_examples=50)
@given(st.floats(-50, 50).map(lambda t: round(t, 3)), st.integers(1, 300))
def test_tails_are_symmetric_fall_with_t_and_undo_quantiles(t, df):
    tail = t_tail(t, df)
    assert tail + t_tail(-t, df) == pytest.approx(1, abs=1e-15)
    assert 0 < t_tail(t + 0.01, df) < tail < 1 or tail > 1 - 1e-12
    assert t_tail(0, df) == 0.5
    if 1e-6 < tail < 1 - 1e-6:
        assert t_quantile(1 - tail, df) == pytest.approx(t, rel=1e-6, abs=1e-6)


@settings(max_examples=50)
@given(st.floats(0.001, 1e6))
def test_tails_of_one_to_four_degrees_of_freedom_have_closed_forms(t):
    """Also far out, where one less the chance of a smaller t would leave no digit."""
    closed = {
        1: math.atan2(1, t) / math.pi,
        2: 1 / (math.sqrt(t * t + 2) * (math.sqrt(t * t + 2) + t)),
    }
    for df, tail in closed.items():
        assert t_tail(t, df) == pytest.approx(tail, rel=1e-11)
    x = t / math.sqrt(3)
    far = {
        3: (math.atan2(1, x) - x / (1 + x * x)) / math.pi,
        4: (1 - t * (t * t + 6) / (t * t + 4) ** 1.5) / 2,
    }
    for df, tail in far.items():  # which do subtract
        assert t_tail(t, df) == pytest.approx(tail, rel=1e-8, abs=1e-15)


def test_a_tiny_tail_is_the_integral_of_the_density():
    df, t = 9, 30.0
    factor = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
    steps = [t * math.exp(0.001 * k) for k in range(20_000)]
    areas = (0.001 * x * factor * (1 + x * x / df) ** (-(df + 1) / 2) for x in steps)
    assert t_tail(t, df) == pytest.approx(math.fsum(areas), rel=0.01)
    assert t_tail(t, df) < 1e-9


def test_the_tail_of_many_degrees_of_freedom_is_the_normal_one():
    assert t_tail(1.959964, 30_000) == pytest.approx(0.025, rel=2e-4)


def test_a_t_test_of_three_values():
    test = t_test([0.941, 0.942, 0.943], 0.94)
    assert (test.t, test.df) == (pytest.approx(2 * math.sqrt(3)), 2)
    assert test.p == pytest.approx(0.0370899, rel=1e-5)  # 1/2 - t / (2 sqrt(t² + 2))
    assert t_test([0.941, 0.942, 0.943], 0.944).p == pytest.approx(1 - 0.0370899, rel=1e-5)


@pytest.mark.parametrize("values", [[0.94], [0.94] * 5])
def test_there_is_no_t_test_without_a_spread(values):
    assert t_test(values, 0.93) is None


@settings(max_examples=40)
@given(st.data())
def test_the_interval_of_a_share_ends_where_its_tails_are_small(data):
    n = data.draw(st.integers(1, 60))
    count = data.draw(st.integers(0, n))

    def tail(counts, chance):
        return math.fsum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in counts)

    low, high = share_interval(count, n)
    assert 0 <= low <= count / n <= high <= 1
    assert low == 0 if count == 0 else tail(range(count, n + 1), low) == pytest.approx(0.025, rel=1e-6)
    assert high == 1 if count == n else tail(range(count + 1), high) == pytest.approx(0.025, rel=1e-6)
    assert share_interval(n - count, n) == (pytest.approx(1 - high), pytest.approx(1 - low))


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0, 0.30850), (5, 0.18709, 0.81291), (9, 0.55498, 0.99747)])
def test_intervals_of_shares_of_ten_are_those_of_the_tables(count, low, high):
    assert share_interval(count, 10) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


@pytest.mark.parametrize(("count", "n"), [(0, 4), (3, 10), (1700, 2000), (5, 20002), (10**6, 10**6)])
def test_the_ends_of_wilsons_interval_are_as_far_as_chance_takes_a_share(count, n):
    """By 1.96 of the deviations that each end would have, were it the true chance."""
    for end in wilson_interval(count, n):
        assert abs(count / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5, abs=1e-9)
    assert (wilson_interval(n, n)[1], wilson_interval(0, n)[0]) == (1, 0)
    if n == 2000:
        assert wilson_interval(count, n) == pytest.approx(share_interval(count, n), abs=5e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: t_tail(1.0, 0),
        lambda: share_interval(0, 0),
        lambda: share_interval(3, 2),
        lambda: wilson_interval(0, 0),
        lambda: wilson_interval(3, 2),
    ],
)
def test_chances_that_do_not_exist_are_refused(wrong):
    with pytest.raises(UserError, match="allowed"):
        wrong()
