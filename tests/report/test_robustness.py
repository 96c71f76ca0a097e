"""Effective robustness: the baseline's fit, the intervals, the published table and the figure, by values computed in
another way."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastcifar
from fastcifar.report.statistics import share_interval, t_quantile

accuracies = st.floats(0.02, 0.98)


def logit(p):
    return math.log(p / (1 - p))


def expit(x):
    return 1 / (1 + math.exp(-x))


def pairs_on(slope, intercept, originals, off=None, **counts):
    off = off or [0.0] * len(originals)
    shifted = [expit(intercept + slope * logit(x) + each) for x, each in zip(originals, off, strict=True)]
    return [
        fastcifar.AccuracyPair(f"m{i}", x, y, **counts) for i, (x, y) in enumerate(zip(originals, shifted, strict=True))
    ]


@settings(max_examples=50)
@given(st.floats(-3, 3), st.floats(-2, 2), st.lists(st.floats(0.1, 0.9), min_size=5, max_size=9, unique=True))
def test_networks_on_a_line_are_fitted_by_it(slope, intercept, originals):
    if max(originals) - min(originals) < 0.01:
        return
    line = fastcifar.fit_baseline(pairs_on(slope, intercept, originals))
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept), abs=1e-6)
    assert line.predict(0.7) == pytest.approx(expit(intercept + slope * logit(0.7)), abs=1e-6)
    assert line.std == pytest.approx(0, abs=1e-6)
    on_it = fastcifar.AccuracyPair("on it", 0.7, line.predict(0.7), 10**6, 10**6)
    found = fastcifar.effective_robustness(on_it, line)
    assert found.value == pytest.approx(0) and found.interval[0] < 0 < found.interval[1]


def test_fit_band_and_slope_are_those_of_the_textbook():
    """By hand: x = logit of 0.5 and of odds e, e², e³, e⁴, that is 0 to 4; y about 0.5 x - 1."""
    off = [0.1, -0.1, 0.0, -0.1, 0.1]
    line = fastcifar.fit_baseline(pairs_on(0.5, -1, [expit(x) for x in range(5)], off))
    # Σ(x-2)(off) = -0.2 + 0.1 + 0 - 0.1 + 0.2 = 0, and Σ off = 0: the line is unchanged; SSR = 0.04, Sxx = 10
    assert (line.slope, line.intercept) == pytest.approx((0.5, -1))
    assert line.std == pytest.approx(math.sqrt(0.04 / 3))
    t = 3.182446305  # Student, 3 degrees of freedom, 0.975: tables
    assert line.slope_interval == pytest.approx([0.5 + sign * t * math.sqrt(0.04 / 3 / 10) for sign in (-1, 1)])
    half = t * math.sqrt(0.04 / 3) * math.sqrt(1 / 5 + (4 - 2) ** 2 / 10)
    assert line.band(expit(4)) == pytest.approx((expit(1 - half), expit(1 + half)))
    assert line.range == pytest.approx((0.5, expit(4)))


def test_the_interval_adds_both_sets_of_images_and_the_fit_in_squares():
    line = fastcifar.fit_baseline(pairs_on(0.5, -1, [expit(x) for x in range(5)], [0.1, -0.1, 0, -0.1, 0.1]))
    pair = fastcifar.AccuracyPair("a", 0.9, 0.6, images=1000, shifted_images=200)
    found = fastcifar.effective_robustness(pair, line)
    predicted = expit(-1 + 0.5 * logit(0.9))
    assert (found.predicted, found.value) == pytest.approx((predicted, 0.6 - predicted))
    least, most = share_interval(120, 200)
    low, high = (expit(-1 + 0.5 * logit(each)) for each in share_interval(900, 1000))
    below, above = line.band(0.9)
    down = math.sqrt((0.6 - least) ** 2 + (high - predicted) ** 2 + (above - predicted) ** 2)
    up = math.sqrt((most - 0.6) ** 2 + (predicted - low) ** 2 + (predicted - below) ** 2)
    assert found.interval == pytest.approx((found.value - down, found.value + up))
    unknown = fastcifar.effective_robustness(fastcifar.AccuracyPair("b", 0.9, 0.6, images=1000), line)
    assert unknown.value == found.value and unknown.interval is None


def test_the_interval_holds_the_true_value_as_often_as_it_says():
    """2,000 networks whose true accuracies lie 2 points above a line that is nearly exact."""
    line = fastcifar.fit_baseline(pairs_on(0.8, -0.5, [0.8, 0.85, 0.9, 0.95, 0.97], [1e-4, -1e-4, 0, 1e-4, -1e-4]))
    original, random = 0.93, np.random.default_rng(0)
    shifted = line.predict(original) + 0.02
    held, tries = 0, 2000
    right = zip(random.binomial(200, original, tries), random.binomial(100, shifted, tries), strict=True)
    known = {}
    for counts in right:
        if counts not in known:
            pair = fastcifar.AccuracyPair("a", counts[0] / 200, counts[1] / 100, 200, 100)
            low, high = fastcifar.effective_robustness(pair, line).interval
            known[counts] = low <= 0.02 <= high
        held += known[counts]
    assert 0.945 < held / tries < 0.99  # Clopper and Pearson's holds it somewhat more often than 95%


@settings(max_examples=100)
@given(st.sampled_from([0.0, 1.0, 0.5]), st.sampled_from([0.0, 1.0, 0.5]), st.integers(1, 50), st.integers(1, 50))
def test_accuracies_of_0_and_1_have_finite_answers(original, shifted, images, shifted_images):
    pair = fastcifar.AccuracyPair("a", original, shifted, images, shifted_images)
    found = fastcifar.effective_robustness(pair, fastcifar.published_baseline("cifar10.1"))
    assert all(map(math.isfinite, (found.predicted, found.value, *found.interval)))
    assert found.interval[0] <= found.value <= found.interval[1] and 0 <= found.predicted <= 1


def test_many_images_take_no_sums_and_have_the_same_interval():
    for accuracy in (0.5, 0.93, 1.0):
        exact = fastcifar.AccuracyPair("a", accuracy, 0.5, 20_000).interval
        more = fastcifar.AccuracyPair("a", accuracy, 0.5, 20_001).interval
        assert more == pytest.approx(exact, abs=1e-4)
    low, high = fastcifar.AccuracyPair("a", 0.5, 0.5, 10**12).interval
    assert low < 0.5 < high < low + 1e-5


def test_few_networks_and_equal_ones_give_no_baseline():
    originals = [0.90, 0.92, 0.94, 0.96]
    with pytest.raises(fastcifar.UserError, match=r"takes 5 networks .* there are 4; allowed: 5 or more"):
        fastcifar.fit_baseline(pairs_on(1, 0, originals))
    perfect = fastcifar.AccuracyPair("perfect", 1.0, 0.5)
    with pytest.raises(fastcifar.UserError, match="there are 4"):
        fastcifar.fit_baseline([*pairs_on(1, 0, originals), perfect])
    near = [0.940, 0.941, 0.942, 0.943, 0.944]
    with pytest.raises(fastcifar.UserError, match=r"94\.00% to 94\.40%, differ by no more than chance"):
        fastcifar.fit_baseline(pairs_on(1, 0, near, images=10_000))
    assert fastcifar.fit_baseline(pairs_on(1, 0, near, images=10**6)).slope == pytest.approx(1)
    with pytest.raises(fastcifar.UserError, match="differ by no more than chance"):
        fastcifar.fit_baseline(pairs_on(1, 0, [0.9] * 5))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"original": 94.0}, "original of 'a' is 94.0; allowed: 0 to 1"),
        ({"shifted": math.nan}, "shifted of 'a' is nan"),
        ({"images": 0}, "images of 'a' is 0; allowed: 1 or more"),
    ],
)
def test_what_is_no_pair_is_refused(fields, said):
    with pytest.raises(fastcifar.UserError, match=said):
        fastcifar.AccuracyPair(**{"name": "a", "original": 0.9, "shifted": 0.8, **fields})


@pytest.mark.parametrize(("name", "images"), [("cifar10.1", 2000), ("cifar10.1:v4", 2021)])
def test_the_published_table_is_of_30_networks_that_lose_4_to_16_points(name, images):
    pairs = fastcifar.published_pairs(name)
    assert len(pairs) == len({pair.name for pair in pairs}) == 30
    assert {(pair.images, pair.shifted_images) for pair in pairs} == {(10_000, images)}
    for pair in pairs:
        for accuracy, n in ((pair.original, 10_000), (pair.shifted, images)):
            assert accuracy * n == pytest.approx(round(accuracy * n), abs=1e-6)
        assert 0.8 < pair.original < 0.98 and 0.03 < pair.original - pair.shifted < 0.16
    # Recht et al. (2018), of v4: 97.1% and 93.0% of the best network, 93.0% and 84.9%, 85.6% and 73.1%
    if images == 2021:
        found = {pair.name: (round(100 * pair.original, 1), round(100 * pair.shifted, 1)) for pair in pairs}
        assert found["shake_shake_26_2x64d_SSI_cutout16"] == (97.1, 93.0)
        assert found["vgg_15_BN_64"] == (93.0, 84.9) and found["random_features_256k_aug"] == (85.6, 73.1)


@pytest.mark.parametrize("name", ["cifar10.1", "cifar10.1:v4"])
def test_the_published_baseline_is_as_steep_as_published(name):
    """Recht et al. (2019, arXiv 1902.10811) give 1.69 points for a point, of 34 networks; 30 of them are public."""
    pairs, line = fastcifar.published_pairs(name), fastcifar.published_baseline(name)
    x, y = ([getattr(pair, what) for pair in pairs] for what in ("original", "shifted"))
    assert 1.55 < np.polyfit(x, y, 1)[0] < 1.75
    slope, intercept = np.polyfit([*map(logit, x)], [*map(logit, y)], 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    assert 0.8 < line.slope < 0.9 and line.slope_interval[1] < 1  # on logit axes gains are smaller than before
    off = [logit(b) - intercept - slope * logit(a) for a, b in zip(x, y, strict=True)]
    assert line.std == pytest.approx(math.sqrt(sum(each**2 for each in off) / 28))
    held = [low <= line.predict(a) <= high for a in x for low, high in [line.band(a)]]
    assert all(held) and line.source == "30 networks of Recht et al. 2018"


def test_another_name_has_no_published_baseline():
    with pytest.raises(fastcifar.UserError, match=r"for 'cifar10-c'; allowed: cifar10\.1, cifar10\.1:v4; of others"):
        fastcifar.published_pairs("cifar10-c")


def test_the_figure_shows_line_band_networks_and_points():
    points = [
        fastcifar.AccuracyPair("run", 0.94, 0.87, 10_000, 2_000),
        fastcifar.AccuracyPair("both", 0.98, 0.9, 10_000, 2_000, group="ensembles"),
        fastcifar.AccuracyPair("said", 0.75, 0.6, group="given pairs"),
    ]
    line = fastcifar.published_baseline("cifar10.1")
    figure = fastcifar.plot_effective_robustness(points, "cifar10.1")
    assert (figure.xlabel, figure.ylabel) == ("accuracy on cifar10", "accuracy on cifar10.1") and figure.accuracies
    drawn, same, networks, *groups = figure.lines
    assert (drawn.x[0], drawn.x[-1]) == pytest.approx((0.75, 0.98))
    assert drawn.y == [line.predict(x) for x in drawn.x] and drawn.band == [line.band(x) for x in drawn.x]
    assert tuple(same.x) == tuple(same.y)
    assert list(networks.x) == [pair.original for pair in line.pairs] and networks.marks
    assert [(list(each.x), list(each.y), each.label) for each in groups] == [
        ([0.94], [0.87], "runs"),
        ([0.98], [0.9], "ensembles"),
        ([0.75], [0.6], "given pairs"),
    ]
    assert groups[0].level == [share_interval(9400, 10_000)] and groups[0].intervals == [share_interval(1740, 2000)]
    assert groups[2].level == groups[2].intervals == [None]


def test_a_baseline_of_the_points_themselves_is_drawn_once(tmp_path):
    pytest.importorskip("matplotlib")
    points = pairs_on(0.9, -0.2, [0.93, 0.935, 0.938, 0.94, 0.945])
    figure = fastcifar.plot_effective_robustness(points, shifted="fog", title="five")
    assert [line.label for line in figure.lines] == ["effective robustness 0, 95% band", "the same accuracy", "runs"]
    drawn = figure.save(tmp_path / "er")[1].read_text()
    assert all(f">{text}<" in drawn for text in ("accuracy on fog", "five", "93.5%", "94%", "runs"))  # a narrow range
    wide = fastcifar.plot_effective_robustness(points[:1], "cifar10.1").save(tmp_path / "wide")[1].read_text()
    assert all(f">{text}<" in wide for text in ("85%", "90%", "95%", "70%", "97%"))


def test_t_of_the_band_has_the_published_degrees_of_freedom():
    line = fastcifar.published_baseline("cifar10.1")
    middle = sum(logit(pair.original) for pair in line.pairs) / 30
    low, high = line.band(expit(middle))
    half = t_quantile(0.975, 28) * line.std / math.sqrt(30)
    assert (logit(high) - logit(low)) / 2 == pytest.approx(half)
