"""Ensembles of runs: every subset by hand, paired gains, and samples of subsets."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcifar.report.ensembles
from fastcifar.errors import UserError
from fastcifar.report import summarize
from fastcifar.report.calibration import log_probabilities
from fastcifar.report.ensembles import choose_subsets, default_sizes, mean_logits, score_ensembles

seeds = st.integers(0, 2**32 - 1)
MEANS = ("probabilities", "logits")


def made(seed, runs, images=40, classes=3, unlabeled=0.0):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=images)
    logits = (2 * random.normal(size=(runs, images, classes))).astype(np.float32)
    logits[:, np.arange(images), labels] += 1
    labels[random.random(images) < unlabeled] = -1
    return logits, labels


def by_hand(logits, labels, subset, mean_of):
    """Whether each labeled image is right, and its loss, in plain Python."""
    found = []
    for image, label in enumerate(labels.tolist()):
        if label < 0:
            continue
        members = [[math.exp(float(z)) for z in logits[run, image]] for run in subset]
        members = [[each / sum(member) for each in member] for member in members]
        if mean_of == "logits":
            members = [[math.log(each) for each in member] for member in members]
        means = [statistics.fmean(values) for values in zip(*members, strict=True)]
        if mean_of == "logits":
            means = [math.exp(each) for each in means]
            means = [each / sum(means) for each in means]
        found.append((means.index(max(means)) == label, -math.log(means[label])))
    return np.array(found, float).T


@settings(max_examples=25)
@given(seeds, st.integers(1, 5), st.sampled_from(MEANS), st.sampled_from([0.0, 0.3]), st.sampled_from([30, 2**22]))
def test_every_number_is_the_one_of_all_subsets_by_hand(seed, runs, mean_of, unlabeled, floats):
    logits, labels = made(seed, runs, unlabeled=unlabeled)
    labels[0] = labels[1] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastcifar.report.ensembles, "_FLOATS", floats)  # in pieces, and in one
        found = score_ensembles(logits, labels, mean_of)
    assert [each.members for each in found] == list(range(1, runs + 1))
    single = np.mean([by_hand(logits, labels, [run], mean_of) for run in range(runs)], 0)
    for each in found:
        results = [by_hand(logits, labels, s, mean_of) for s in itertools.combinations(range(runs), each.members)]
        assert each.is_exact and each.subsets == len(results)
        mean = np.mean(results, 0)
        for place, name in enumerate(("accuracy", "loss")):
            gain = (mean - single)[place]
            for value, wanted in ((name, mean[place]), (f"{name}_gain", gain)):
                summary, said = summarize(wanted.tolist()), getattr(each, value)
                assert (said.n, said.mean) == (len(gain), pytest.approx(summary.mean, abs=1e-9))
                assert said.interval == pytest.approx(summary.interval, abs=1e-9)
            of_subsets = [result[place].mean() for result in results]
            std = statistics.stdev(of_subsets) if len(results) > 1 else None
            assert getattr(each, f"{name}_std") == (std if std is None else pytest.approx(std, abs=1e-9))


def test_two_runs_by_hand():
    # Probabilities of the label: 0.9 and 0.2. Means: of probabilities 0.55; of logits 3 against 1: 0.6 (9 · 1/4 = 9/4).
    logits = np.log(np.array([[[0.9, 0.1]], [[0.2, 0.8]]], np.float32))
    one, two = score_ensembles(logits, np.array([0]))
    assert (one.accuracy.mean, one.subsets, two.accuracy.mean, two.subsets) == (0.5, 2, 1.0, 1)
    assert one.loss.mean == pytest.approx(-(math.log(0.9) + math.log(0.2)) / 2)
    assert two.loss.mean == pytest.approx(-math.log(0.55))
    assert two.accuracy_gain.mean == 0.5 and two.accuracy.interval is None
    _, two = score_ensembles(logits, np.array([0]), "logits")
    assert two.loss.mean == pytest.approx(-math.log(0.6))


@pytest.mark.parametrize("mean_of", MEANS)
def test_all_runs_at_once_are_the_last_row(mean_of):
    logits, labels = made(3, 12)
    logits = np.round(2 * logits) / 2  # as of half precision: ties, of which the first class wins in either way
    last = score_ensembles(logits, labels, mean_of)[-1]
    mean = mean_logits(logits, mean_of)
    assert last.members == 12 and last.accuracy.mean == np.mean(mean.argmax(1) == labels)
    log_probs = mean - np.log(np.exp(mean).sum(1, keepdims=True))
    assert last.loss.mean == pytest.approx(-log_probs[np.arange(len(labels)), labels].mean())


def test_a_sample_of_subsets_is_fixed_and_near_to_all_of_them():
    logits, labels = made(0, 12)
    (sampled,), (exact,) = (score_ensembles(logits, labels, sizes=[6], most=most) for most in (100, 1000))
    assert (sampled.subsets, sampled.is_exact, exact.subsets, exact.is_exact) == (100, False, 924, True)
    assert (
        sampled
        == score_ensembles(logits, labels, sizes=[6])[0]
        != score_ensembles(logits, labels, sizes=[6], seed=1)[0]
    )
    assert abs(sampled.loss.mean - exact.loss.mean) < 5 * exact.loss_std / math.sqrt(100)


@given(st.integers(1, 300), st.data())
def test_subsets_have_their_size_and_none_comes_twice(runs, data):
    size = data.draw(st.integers(1, runs))
    rows = choose_subsets(runs, size)
    assert rows.shape[1] == size and rows.min() >= 0 and rows.max() < runs
    assert (np.diff(rows, axis=1) > 0).all()
    count = math.comb(runs, size)
    assert len({*map(tuple, rows.tolist())}) == len(rows) == (count if count <= max(100, runs) else 100)
    assert np.array_equal(rows, choose_subsets(runs, size))


@pytest.mark.parametrize(("runs", "size", "most"), [(9, 4, 125), (16, 8, 10_000), (20, 17, 1000)])
def test_a_large_part_of_all_subsets_has_none_twice_and_every_run_as_often(runs, size, most):
    # Listed: 125 of 126. Drawn until there are as many: 10,000 of 12,870. Again listed: 1000 of 1140.
    rows = choose_subsets(runs, size, most)
    assert len({*map(tuple, rows.tolist())}) == len(rows) == most < math.comb(runs, size)
    assert np.bincount(rows.ravel(), minlength=runs) == pytest.approx(most * size / runs, rel=0.05)


@given(st.integers(1, 3000))
def test_numbers_of_members_rise_from_one_to_all(runs):
    sizes = default_sizes(runs)
    assert (sizes[0], sizes[-1]) == (1, runs) and sizes == sorted(set(sizes)) and len(sizes) < 45
    assert sizes[:10] == list(range(1, min(runs, 10) + 1))


def test_a_probability_of_nothing_costs_what_its_logarithm_says():
    logits, labels = np.array([[[1e15, 0.0]], [[1e15, 0.0]], [[800.0, 0.0]]]), np.array([1])
    for mean_of in MEANS:
        found = score_ensembles(logits, labels, mean_of)
        assert found[0].loss.mean == pytest.approx((2e15 + 800) / 3)
    _, two, three = score_ensembles(logits, labels)
    assert two.loss.mean == pytest.approx((1e15 + 2 * (800 + math.log(2))) / 3)
    assert three.loss.mean == pytest.approx(800 + math.log(3))
    assert mean_logits(logits)[0] == pytest.approx([0, -800 - math.log(3)])


@settings(max_examples=25)
@given(seeds, st.integers(1, 5), st.sampled_from([1, 300, 1e5]), st.sampled_from([30, 2**22]))
def test_the_loss_of_mean_probabilities_has_no_floor(seed, runs, scale, floats):
    logits, labels = made(seed, runs)
    logits = scale * logits.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastcifar.report.ensembles, "_FLOATS", floats)
        found, of_logits = (score_ensembles(logits, labels, mean_of) for mean_of in MEANS)
    assert found[0].loss.mean == pytest.approx(of_logits[0].loss.mean) and found[0].accuracy == of_logits[0].accuracy
    at_label = log_probabilities(logits)[:, np.arange(len(labels)), labels].tolist()
    for each in found:
        losses = []
        for subset in itertools.combinations(at_label, each.members):
            for logs in zip(*subset, strict=True):
                total = sum(math.exp(log - max(logs)) for log in logs)
                losses.append(math.log(each.members) - max(logs) - math.log(total))
        assert each.loss.mean == pytest.approx(statistics.fmean(losses), abs=1e-9)
    last = log_probabilities(mean_logits(logits))[np.arange(len(labels)), labels]
    assert found[-1].loss.mean == pytest.approx(-last.mean())


@pytest.mark.parametrize(
    ("shape", "labels", "sizes", "line"),
    [
        ((2, 3, 2), [0, 1, 1], [3], "an ensemble of 3 members is asked for; allowed: 1 to 2"),
        ((2, 3, 2), [0, 1, 1], [0], "an ensemble of 0 members"),
        ((2, 3, 2), [0, 1], [], r"the shapes of logits and labels are \[2, 3, 2\] and \[2\]; allowed"),
        ((2, 3), [0, 1, 1], [], "the shapes of logits and labels"),
        ((0, 3, 2), [0, 1, 1], [], "the shapes of logits and labels"),
        ((2, 3, 2), [-1, -1, -1], [], "no image has a label"),
    ],
)
def test_what_is_no_ensemble_is_refused(shape, labels, sizes, line):
    with pytest.raises(UserError, match=line):
        score_ensembles(np.zeros(shape), np.array(labels), sizes=sizes)
