"""Designs of Plackett and Burman, and what the effects estimated from their runs are worth."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.report import t_quantile
from fastcifar.report.screening import MOST_FACTORS, Effects, plackett_burman

COUNTS = range(1, MOST_FACTORS + 1)
seeds = st.integers(0, 2**32 - 1)


def rounds_of(factors, rounds, foldover=True):
    """The signs and the block of every run of several rounds, each second one turned around."""
    design = plackett_burman(factors)
    signs = [tuple(-s for s in row) if foldover and n % 2 else row for n in range(rounds) for row in design]
    return signs, [n for n in range(rounds) for _ in design]


def without_noise(signs, effects, pairs=None, blocks=None):
    values = np.array(signs) @ effects / 2 + (0 if blocks is None else np.array(blocks) ** 2 + 1.0)
    for (one, other), worth in (pairs or {}).items():
        values += worth * np.array(signs)[:, one] * np.array(signs)[:, other] / 2
    return values.tolist()


@pytest.mark.parametrize("factors", COUNTS)
def test_a_design_is_the_smallest_balanced_and_orthogonal_and_begins_with_all_low(factors):
    signs = np.array(plackett_burman(factors))
    assert len(signs) == next(runs for runs in (4, 8, 12, 16, 20, 24) if runs > factors)
    assert set(signs.flat) == {-1, 1} and (signs[0] == -1).all()
    assert (signs.sum(0) == 0).all()
    assert (signs.T @ signs == len(signs) * np.eye(factors)).all()


@pytest.mark.parametrize("factors", [0, 24])
def test_a_design_of_no_factor_or_too_many_is_refused(factors):
    with pytest.raises(UserError, match=f"there are {factors} factors; allowed: 1 to 23"):
        plackett_burman(factors)


@settings(max_examples=40)
@given(seeds, st.sampled_from(COUNTS), st.integers(1, 4), st.floats(0, 0.7))
def test_effects_are_exact_without_noise_whatever_runs_are_left_and_none_where_they_cannot_be_told(
    seed, factors, rounds, lost
):
    random = np.random.default_rng(seed)
    signs, blocks = rounds_of(factors, rounds)
    kept = [place for place in range(len(signs)) if random.random() >= lost] or [0]
    signs, blocks = [signs[place] for place in kept], [blocks[place] for place in kept]
    truth = random.normal(size=factors)
    fit = Effects(signs, blocks, without_noise(signs, truth, blocks=blocks))
    means = np.array([[float(block == each) for each in set(blocks)] for block in blocks])
    for factor in range(factors):
        others = np.hstack([np.delete(np.array(signs, float), factor, axis=1), means])
        column = np.array(signs, float)[:, [factor]]
        told = np.linalg.matrix_rank(np.hstack([others, column])) > np.linalg.matrix_rank(others)
        found = fit.of(factor)
        assert (found is not None) == told
        assert found is None or found.mean == pytest.approx(truth[factor], abs=1e-8)


@pytest.mark.parametrize(
    ("factors", "rounds", "foldover", "clear"),
    [
        *((4, 1, False, True), (8, 1, False, False), (11, 1, True, False), (11, 2, False, False)),
        *((11, 2, True, True), (11, 3, True, False), (23, 4, True, True), (15, 2, True, True), (1, 1, True, True)),
    ],
)
def test_what_pairs_do_shifts_no_effect_where_it_is_said_so(factors, rounds, foldover, clear):
    random = np.random.default_rng(0)
    signs, blocks = rounds_of(factors, rounds, foldover)
    truth = random.normal(size=factors)
    pairs = {pair: random.normal() for pair in itertools.combinations(range(factors), 2)}
    fit = Effects(signs, blocks, without_noise(signs, truth, pairs))
    found = [fit.of(factor).mean for factor in range(factors)]
    assert fit.is_clear == clear == np.allclose(found, truth)


def test_an_interval_is_that_of_the_difference_of_two_means():
    """In a balanced design, with the residuals of all other columns in one variance."""
    signs, blocks = rounds_of(11, 2)
    values = np.random.default_rng(1).normal(size=24)
    fit, column = Effects(signs, blocks, values.tolist()), np.array(signs)
    high = np.array([values[column[:, factor] > 0].mean() for factor in range(11)])
    low = np.array([values[column[:, factor] < 0].mean() for factor in range(11)])
    by_block = values.reshape(2, 12)
    spread = ((by_block - by_block.mean(1, keepdims=True)) ** 2).sum() - 24 * (((high - low) / 2) ** 2).sum()
    assert fit.df == 24 - 2 - 11
    assert fit.std == pytest.approx((spread / 11) ** 0.5)
    for factor in range(11):
        found = fit.of(factor)
        half = t_quantile(0.975, 11) * fit.std * (1 / 12 + 1 / 12) ** 0.5
        assert found.mean == pytest.approx(high[factor] - low[factor])
        assert found.interval == pytest.approx((found.mean - half, found.mean + half))
    both = fit.together([1, -1, *[0] * 9])
    assert both.mean == pytest.approx(fit.of(0).mean - fit.of(1).mean)
    assert both.interval[1] - both.mean == pytest.approx(half * 2**0.5)


@pytest.mark.parametrize(("factors", "rounds", "lost"), [(11, 2, 0), (11, 2, 5), (9, 1, 0), (3, 2, 0), (12, 3, 7)])
def test_intervals_hold_the_truth_95_times_in_100(factors, rounds, lost):
    random, held, count = np.random.default_rng(factors), 0, 0
    for _ in range(200):
        signs, blocks = rounds_of(factors, rounds)
        kept = np.sort(random.permutation(len(signs))[lost:])
        truth = random.normal(size=factors)
        values = np.array(without_noise(signs, truth, blocks=blocks)) + random.normal(size=len(signs))
        fit = Effects([signs[n] for n in kept], [blocks[n] for n in kept], values[kept].tolist())
        told = [
            (found.interval, value) for found, value in zip(map(fit.of, range(factors)), truth, strict=True) if found
        ]
        held += sum(low < value < high for (low, high), value in told)
        count += len(told)
    assert 0.93 < held / count < 0.97


def test_without_degrees_of_freedom_there_is_an_effect_and_no_interval():
    signs, blocks = rounds_of(11, 1)
    fit = Effects(signs, blocks, np.random.default_rng(0).normal(size=12).tolist())
    assert (fit.df, fit.std) == (0, None)
    assert all(fit.of(factor).interval is None for factor in range(11))
