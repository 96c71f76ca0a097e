"""Calibration: hand-computed errors, the temperature that is least in log-loss, and no image measured with its own."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.report.calibration import (
    COLDEST,
    HOTTEST,
    calibrate,
    fit_temperature,
    log_probabilities,
    reliability,
)

seeds = st.integers(0, 2**32 - 1)


def made(seed, images=200, classes=4, signal=2.0):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), labels] += signal * random.random(images)
    return logits, labels


def loss(logits, labels, temperature):
    return -log_probabilities(logits / temperature)[np.arange(len(labels)), labels].mean()


def test_log_probabilities_are_normalized_whatever_the_size_of_logits():
    found = log_probabilities(np.array([[0, math.log(3)], [1e15, 0], [-1e15, -1e15]], np.float64))
    assert found == pytest.approx(np.array([[math.log(0.25), math.log(0.75)], [0, -1e15], [math.log(0.5)] * 2]))


def test_the_expected_calibration_error_is_the_one_computed_by_hand():
    # Confidences 0.9, 0.92 (one right) and 0.6 (wrong): bins (13/15, 14/15] and (8/15, 9/15].
    log_probs = np.log([[0.9, 0.1], [0.08, 0.92], [0.6, 0.4]])
    found = reliability(log_probs, np.array([0, 0, 1]))
    assert found.ece == pytest.approx((abs(1 - 1.82) + abs(0 - 0.6)) / 3)
    assert found.points() == [pytest.approx((0.6, 0.0)), pytest.approx((0.91, 0.5))]
    assert found.counts.sum() == 3 and found.counts[13] == 2 and found.counts[8] == 1
    both = found + found
    assert both.ece == pytest.approx(found.ece) and both.counts.sum() == 6


def test_a_confidence_of_an_edge_belongs_to_the_bin_below():
    assert reliability(np.log([[0.5, 0.5], [0.75, 0.25], [1.0, 1e-9]]), np.zeros(3, int), bins=4).counts.tolist() == [
        *(0, 1, 1, 1)
    ]


@settings(max_examples=50)
@given(seeds, st.floats(-3, 3))
def test_no_temperature_has_less_loss_and_it_scales_with_the_logits(seed, power):
    logits, labels = made(seed)
    scale = 10**power
    found = fit_temperature(logits * scale, labels)
    assert COLDEST * 0.999 <= found <= HOTTEST * 1.001
    least = loss(logits * scale, labels, found)
    for other in (found * 1.01, found / 1.01, 1.0):
        if COLDEST <= other <= HOTTEST:
            assert loss(logits * scale, labels, other) >= least - 1e-12
    if COLDEST < found / scale < HOTTEST and COLDEST * 1.01 < found < HOTTEST / 1.01:
        assert fit_temperature(logits, labels) == pytest.approx(found / scale, rel=1e-6)


def test_where_no_temperature_is_best_it_is_an_end_or_none_changes_anything():
    all_right, all_wrong = np.eye(3) * 5, np.eye(3) * -5
    assert fit_temperature(all_right, np.arange(3)) == pytest.approx(COLDEST)
    assert fit_temperature(all_wrong, np.arange(3)) == pytest.approx(HOTTEST)
    assert fit_temperature(np.zeros((3, 3)), np.arange(3)) == 1
    for label in range(3):
        assert COLDEST * 0.999 <= fit_temperature(np.array([[1e15, 0.0, -1e15]]), np.array([label])) <= HOTTEST * 1.001


@settings(max_examples=30)
@given(seeds, st.integers(1, 60))
def test_each_half_is_scaled_with_the_temperature_of_the_other(seed, images):
    logits, labels = made(seed, images)
    found = calibrate(logits, labels)
    assert found.accuracy == np.mean(logits.argmax(1) == labels)
    assert found.loss == pytest.approx(loss(logits, labels, 1))
    if images == 1:
        assert (found.temperature, found.scaled_loss, found.scaled_ece) == (None, None, None)
        return
    order = np.random.default_rng(0).permutation(images)
    one, other = order[: images // 2], order[images // 2 :]
    temperatures = [fit_temperature(logits[half], labels[half]) for half in (one, other)]
    assert found.temperature == pytest.approx(math.sqrt(math.prod(temperatures)), rel=1e-4)
    scaled = logits.copy()
    scaled[other] /= temperatures[0]
    scaled[one] /= temperatures[1]
    assert found.scaled_loss == pytest.approx(loss(scaled, labels, 1), rel=1e-4)
    assert found.scaled_ece == pytest.approx(reliability(log_probabilities(scaled), labels).ece, abs=0.2)


def test_overconfident_predictions_are_mended():
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 5))
    probs = np.exp(log_probabilities(logits))
    labels = (probs.cumsum(1) < random.random((20_000, 1))).sum(1)  # drawn from the probabilities: T = 1 is right
    found = calibrate(3 * logits, labels)
    assert found.temperature == pytest.approx(3, rel=0.03)
    assert found.ece > 0.2 and found.scaled_ece is not None and found.scaled_ece < 0.015
