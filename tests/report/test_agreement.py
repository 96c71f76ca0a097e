"""How far runs agree: churn and dominance by their definitions, the images that are hard, and all of it as data."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcifar.report.ensembles
from fastcifar.errors import UserError
from fastcifar.report.agreement import OverPairs, agreement, churn, dominance, hard_images

seeds = st.integers(0, 2**32 - 1)


def test_three_runs_by_hand():
    labels = np.array([0, 1, 2, 2, -1])
    answers = np.array([[0, 1, 2, 0, 1], [0, 1, 1, 0, 1], [0, 2, 2, 1, 0]])
    assert churn(answers, 3) == OverPairs(pytest.approx((0.2 + 0.6 + 0.8) / 3), 0.2, 0.8)
    # Right: 3, 2 and 2 of 4. Where the less accurate alone is right: run 1 nowhere, run 2 nowhere; of 1 and 2 one each.
    observed, independent = dominance(answers[:, :4] == labels[:4])
    assert observed == OverPairs(pytest.approx(1 / 12), 0, 0.25)
    assert independent == OverPairs(pytest.approx((0.5 * 0.25 * 2 + 0.25) / 3), 0.125, 0.25)
    first, second, third = hard_images(answers, labels)
    assert (first.image, first.label, first.right, list(first.predicted.items())) == (3, 2, 0, [(0, 2), (1, 1)])
    assert [(each.image, each.right, each.predicted) for each in (second, third)] == [
        *((1, 2, {1: 2, 2: 1}), (2, 2, {2: 2, 1: 1}))
    ]


def test_of_images_that_as_few_get_right_the_one_with_the_most_agreed_wrong_answer_is_harder():
    answers = np.array([[1, 1, 0, 1], [2, 1, 1, 2], [3, 1, 1, 1]])
    assert [each.image for each in hard_images(answers, np.zeros(4, int))] == [1, 3, 0, 2]


@settings(max_examples=40)
@given(seeds, st.integers(2, 6), st.integers(1, 30), st.integers(2, 5), st.sampled_from([7, 2**22]))
def test_pairs_are_counted_as_one_by_one(seed, runs, images, classes, floats):
    random = np.random.default_rng(seed)
    answers, labels = random.integers(classes, size=(runs, images)), random.integers(classes, size=images)
    are_right = answers == labels
    pairs = list(itertools.combinations(range(runs), 2))
    differ = [float(np.mean(answers[a] != answers[b])) for a, b in pairs]
    ordered = [sorted(pair, key=lambda run: are_right[run].sum()) for pair in pairs]
    alone = [float(np.mean(are_right[less] & ~are_right[more])) for less, more in ordered]
    chance = [float(are_right[less].mean() * (1 - are_right[more].mean())) for less, more in ordered]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastcifar.report.ensembles, "_FLOATS", floats)  # in pieces, and in one
        found = [churn(answers, classes), *dominance(are_right)]
    for said, values in zip(found, (differ, alone, chance), strict=True):
        assert (said.mean, said.least, said.largest) == pytest.approx((np.mean(values), min(values), max(values)))


@settings(max_examples=25)
@given(seeds, st.integers(2, 4), st.sampled_from([0.0, 0.5]))
def test_counts_add_up_and_numbers_agree_with_each_other(seed, runs, unlabeled):
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=25)
    logits = random.normal(size=(runs, 25, 3)).astype(np.float32)
    labels[random.random(25) < unlabeled] = -1
    labels[0] = 2
    found = agreement(logits, labels)
    assert found.right is not None and found.right.sum() == found.labeled == (labels >= 0).sum()
    assert sum(found.by_all.values()) == found.labeled and found.images == 25
    assert len(found.hard) == found.by_all["some"] + found.by_all["none"]
    assert [each.right for each in found.hard] == sorted(each.right for each in found.hard)
    for each in found.hard:
        assert sum(each.predicted.values()) == runs and each.predicted.get(each.label, 0) == each.right < runs
    mean = found.mean_calibration
    for mean_of, scores in found.ensembles.items():
        assert scores[0].accuracy.mean == pytest.approx(mean.accuracy)
        assert scores[0].loss.mean == pytest.approx(mean.loss)
        assert scores[-1].accuracy.mean == pytest.approx(found.of_ensembles[mean_of].accuracy)
        assert scores[-1].loss.mean == pytest.approx(found.of_ensembles[mean_of].loss)
        assert scores[-1].loss_gain.mean <= 1e-9  # by Jensen's inequality
    assert mean.accuracy == pytest.approx((found.right @ np.arange(runs + 1)) / runs / found.labeled)
    assert mean.ece == pytest.approx(np.mean([each.ece for each in found.calibrations]))
    data = json.loads(json.dumps(found.to_json([f"run {number}" for number in range(runs)]), allow_nan=False))
    assert data["right"]["by_runs"] == found.right.tolist() and len(data["hard"]) == len(found.hard)
    assert data["runs"][1]["name"] == "run 1" and sum(data["calibration"]["member"]["bins"]["counts"]) == (
        runs * found.labeled
    )


def test_equal_runs_differ_in_nothing_and_gain_nothing():
    logits = np.random.default_rng(0).normal(size=(1, 50, 3)).repeat(4, 0)
    found = agreement(logits, np.arange(50) % 3)
    assert found.churn == found.dominance == OverPairs(0, 0, 0) and found.by_all["some"] == 0
    for scores in found.ensembles.values():
        assert scores[-1].accuracy_gain.interval == (0, 0) and scores[-1].loss_gain.mean == pytest.approx(0, abs=1e-12)


def test_without_labels_there_is_churn_alone():
    logits = np.random.default_rng(0).normal(size=(3, 9, 2))
    found = agreement(logits, np.full(9, -1))
    assert (found.labeled, found.right, found.hard, found.ensembles) == (0, None, (), {})
    assert found.by_all == {"all": 0, "some": 0, "none": 0}
    assert found.to_json(["a", "b", "c"]).keys() == {"images", "labeled", "churn", "runs"}


def test_one_run_agrees_with_nobody():
    with pytest.raises(UserError, match="those of 1 run; allowed: 2 runs or more"):
        agreement(np.zeros((1, 3, 2)), np.zeros(3, int))
