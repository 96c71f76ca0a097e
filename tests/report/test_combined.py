"""An ensemble beside its members: by hand, and what the table says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.report.combined import HEADS, SCORES, combine, member_rows
from fastcifar.report.ensembles import MEANS

LABELS = np.array([0, 1, 1, 0])


def of(*probabilities):
    """Logits of two classes by the probability of the first, image by image."""
    return np.stack([np.log(probabilities), np.log1p(-np.array(probabilities))], 1)


def test_scores_by_hand():
    logits = np.stack([of(0.9, 0.4, 0.6, 0.4), of(0.8, 0.3, 0.2, 0.9)])
    found = combine(logits, LABELS)
    assert found.members == 2 and found.member_accuracy.mean == 0.75  # of 4 images 2 and 4 right
    assert found.accuracy.mean == 1 and found.accuracy_gain.mean == 0.25
    means = (0.85, 0.65, 0.6, 0.65)
    assert found.loss.mean == pytest.approx(-np.mean(np.log(means)))
    singles = [0.9, 0.6, 0.4, 0.4, 0.8, 0.7, 0.8, 0.9]
    assert found.member_loss.mean == pytest.approx(-np.mean(np.log(singles)))
    assert found.loss_gain.mean == pytest.approx(found.loss.mean - found.member_loss.mean)
    gains = np.array([0, 0, 0.5, 0.5])
    half = 3.182446305 * gains.std(ddof=1) / math.sqrt(4)
    assert found.accuracy_gain.interval == pytest.approx((0.25 - half, 0.25 + half))
    geometric = combine(logits, LABELS, "logits")
    odds = math.sqrt(0.9 / 0.1 * 0.8 / 0.2)
    assert -math.log(odds / (1 + odds)) < geometric.loss.mean * 4
    assert len(found.cells) == len(HEADS) == len(SCORES)
    assert found.cells[0].startswith("75.00% ± ") and found.cells[2].startswith("+25.00 ± ")


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.sampled_from(MEANS))
def test_the_loss_of_an_ensemble_is_at_most_its_members_mean_and_equal_members_gain_nothing(seed, members, mean_of):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(members, 20, 3)), random.integers(3, size=20)
    found = combine(logits, labels, mean_of)
    assert found.loss_gain.mean <= 1e-12  # Jensen's inequality
    same = combine(np.repeat(logits[:1], members, 0), labels, mean_of)
    assert same.accuracy_gain.mean == 0 and same.loss_gain.mean == pytest.approx(0, abs=1e-12)
    order = combine(logits[::-1], labels, mean_of)
    assert order.accuracy == found.accuracy and order.loss.mean == pytest.approx(found.loss.mean)


def test_members_have_rows_and_images_without_labels_are_refused():
    logits = np.stack([of(0.9, 0.4, 0.6, 0.4), of(0.8, 0.3, 0.2, 0.9)])
    rows = member_rows(["a", "b"], logits, LABELS)
    assert [row[0] for row in rows] == ["a", "b"] and [row[1][:7] for row in rows] == ["50.00% ", "100.00%"]
    with pytest.raises(UserError, match="no image has a label"):
        combine(logits, np.full(4, -1))
