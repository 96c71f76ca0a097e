"""Figures of runs: their numbers are those of the records, and what they show is said."""

import dataclasses
import itertools
import statistics

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar.errors import UserError
from fastcifar.record import EpochRow
from fastcifar.report import plots
from fastcifar.report.figures import Figure
from fastcifar.report.plots import STEMS, _targets, draw_runs, run_figures
from fastcifar.report.runs import Runs
from fastcifar.report.statistics import summarize
from fastcifar.report.summary import row_names

FIRST = ((0.3, 4.0), (0.62, 8.0), (0.91, 12.0)), ((0.4, 5.0), (0.55, 9.0), (0.89, 14.0))
"""Accuracies and seconds, epoch by epoch, of two runs."""
shares = st.integers(0, 1000).map(lambda part: part / 1000)
histories = st.lists(st.lists(st.tuples(shares, st.floats(0.1, 10)), min_size=1, max_size=6), min_size=1, max_size=6)
quick = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(history):
    """Rows of accuracies and seconds; other numbers go with them."""
    return tuple(
        EpochRow(epoch, 2 - accuracy, accuracy - 0.1, accuracy, seconds, 1 - accuracy, 0.1 * epoch)
        for epoch, (accuracy, seconds) in enumerate(history, 1)
    )


@pytest.fixture
def runs(new_record):
    """Makes runs of histories."""

    def make(histories, name="davidnet", **fields):
        records = []
        for seed, history in enumerate(histories):
            ends = {"accuracy": history[-1][0], "tta_accuracy": history[-1][0], "train_seconds": history[-1][1]}
            records.append(new_record(seed=seed, **{**ends, "history": rows(history), **fields}))
        return Runs(name, tuple(records))

    return make


def bold(figure):
    return [line for line in figure.lines if not line.faint]


def test_lines_are_means_with_their_intervals_by_epoch_and_by_mean_seconds(runs):
    figures = run_figures([runs(FIRST)])
    assert tuple(figures) == tuple(stem for stem in STEMS if stem != "accuracy-histogram")
    accuracies = [summarize([100 * run[epoch][0] for run in FIRST]) for epoch in range(3)]
    for by, x in (("epoch", [1, 2, 3]), ("seconds", [4.5, 8.5, 13.0])):
        (line,) = bold(figures[f"accuracy-by-{by}"])
        assert (line.x, line.y) == (x, pytest.approx([each.mean for each in accuracies]))
        for found, each in zip(line.band, accuracies, strict=True):
            assert found == pytest.approx(each.interval)
        singles = [line for line in figures[f"accuracy-by-{by}"].lines if line.faint]
        assert [line.y for line in singles] == [pytest.approx([100 * a for a, _ in run]) for run in FIRST]
        test, train = bold(figures[f"loss-by-{by}"])
        assert (test.label, train.label, test.dash, train.dash) == ("test", "training", 0, 1)
        assert (test.y[0], train.y[0]) == pytest.approx((0.65, 1.65))
        (rate,) = bold(figures[f"learning-rate-by-{by}"])
        assert rate.y == pytest.approx([0.1, 0.2, 0.3]) and not rate.band


def test_a_mean_ends_where_the_first_run_does(runs):
    """The runs that go on are others than those that ended: their mean would be another line."""
    longer = *FIRST[0], (0.95, 16.0), (0.97, 20.0)
    for key, count in (("accuracy", 1), ("loss", 2)):
        for by, x in (("epoch", [1, 2, 3]), ("seconds", [4.5, 8.5, 13.0])):
            figure = run_figures([runs([longer, FIRST[1]])])[f"{key}-by-{by}"]
            assert [line.x for line in bold(figure)] == [x] * count
            assert [len(line.x) for line in figure.lines if line.faint] == [5, 3]


def test_axes_have_units_and_titles_say_recipe_data_n_and_hardware(runs):
    one, two = run_figures([runs(FIRST[:1])]), run_figures([runs(FIRST), runs(FIRST[:1], "other")])
    assert {(each.xlabel, each.ylabel) for each in one.values()} == {
        *itertools.product(("epoch", "train_seconds [s]"), ("test accuracy [%]", "loss [nats]", "learning rate")),
        ("test accuracy [%]", "train_seconds [s]"),
    }
    for stem, figure in one.items():
        _, which, how = figure.title.split("\n")
        assert which == "davidnet on cifar10, 50,000 training images" and not any(line.faint for line in figure.lines)
        n = "n=1" if stem.startswith("learning-rate") else "n=1, no interval"
        assert how == f"{n}; an abacus (1 thread)"
    for stem, figure in two.items():
        _, which, how = figure.title.split("\n")
        assert which == "davidnet and other on cifar10, 50,000 training images" and how.startswith("n=1 to 2")
        assert ("± 95% interval" in how) != stem.startswith("learning-rate")
        labels = [line.label for line in figure.lines if line.label]
        assert labels == ["davidnet, n=2", "other, n=1"]
        assert {line.color for line in figure.lines} == {0, 1}
    assert "(solid: test, dashed: training)" in two["loss-by-epoch"].title
    short = run_figures([runs([run[:1] for run in FIRST], name) for name in ("davidnet", "other")])["loss-by-epoch"]
    assert "(filled marks: test, empty: training)" in short.title and all(map(any, (each.band for each in bold(short))))
    first, *_, last = short.lines
    assert first.aside == -last.aside < 0 and not any(line.aside for line in two["loss-by-epoch"].lines)


def test_of_many_groups_each_has_a_name_and_a_split_its_dash(runs):
    groups = [runs(FIRST[:1], name) for name in ("a" * 90, "a" * 91, *map(str, range(20)))]
    figures = run_figures(groups)
    for figure in figures.values():
        labels = [line.label for line in figure.lines if line.label]
        assert labels == row_names(groups) and len(set(labels)) == 22
    lines = figures["loss-by-epoch"].lines
    assert [line.dash for line in lines] == [0, 1] * 22 and [line.color for line in lines[::2]] == [*range(22)]
    assert {line.dash for line in figures["accuracy-by-epoch"].lines} == {None}
    bars = run_figures([runs([[(0.9 + place / 1000, 1.0)] for place in range(5)])] * 40)["accuracy-histogram"].lines
    assert len({(line.color % 10, line.dash % 4) for line in bars}) == 40  # no marks tell these apart


def test_what_has_no_labels_is_not_drawn_and_validation_images_are_called_so(runs, new_record):
    row = EpochRow(1, 2.0, 0.2, None, 3.0, val_loss=1.0, val_accuracy=0.5)
    ends = {"accuracy": None, "tta_accuracy": None, "history": (row,)}
    figures = run_figures([runs(FIRST[:1], **ends, val_accuracy=0.5)])
    assert [figures[stem].ylabel for stem in ("accuracy-by-epoch", "loss-by-epoch")] == [
        "validation accuracy [%]",
        "loss [nats]",
    ]
    assert [line.label for line in figures["loss-by-epoch"].lines] == ["validation", "training"]
    (end,) = figures["time-to-accuracy"].lines
    assert (end.x, figures["time-to-accuracy"].xlabel) == ([50.0], "validation accuracy [%]")
    bare = dataclasses.replace(row, val_loss=None, val_accuracy=None)
    assert set(run_figures([runs(FIRST[:1], **{**ends, "history": (bare,)})])) == {"loss-by-epoch", "loss-by-seconds"}
    both = run_figures([runs(FIRST[:1]), runs(FIRST[:1], "other", **ends, val_accuracy=0.5)])["loss-by-epoch"]
    named = [(line.label, line.dash) for line in both.lines]
    assert named == [("davidnet", 0), ("", 2), ("other", 1), ("", 2)]  # the first that each has; training is dotted
    held = dataclasses.replace(new_record().dataset, holdout=5000)
    assert run_figures([runs(FIRST, dataset=held)])["accuracy-by-epoch"].ylabel == "held-out accuracy [%]"
    assert run_figures([]) == run_figures([Runs("failed", ())]) == {}
    assert run_figures([runs(FIRST[:1], **ends | {"history": ()})]) == {}


@quick
@given(histories)
def test_the_time_to_an_accuracy_is_the_mean_over_runs_that_all_reach_it(runs, histories):
    for run in histories:
        run[:] = zip((a for a, _ in run), itertools.accumulate(s for _, s in run), strict=True)
    figure = run_figures([runs(histories)])["time-to-accuracy"]
    *reached, end = figure.lines
    found = dict(zip(reached[0].x, reached[0].y, strict=True)) if reached else {}
    accuracies = [100 * accuracy for run in histories for accuracy, _ in run]
    for target in _targets(min(accuracies), max(accuracies)):
        firsts = [next((s for a, s in run if 100 * a >= target - 1e-9), None) for run in histories]
        if None in firsts:
            assert target not in found
        else:
            assert found.pop(target) == pytest.approx(statistics.fmean(firsts))
    assert not found
    assert (*end.x, *end.y) == pytest.approx(
        [statistics.fmean(run[-1][0] * 100 for run in histories), statistics.fmean(run[-1][1] for run in histories)]
    )
    limits = figure.y_range
    assert limits is None or all(limits[0] <= y <= limits[1] for line in figure.lines for y in line.y)


@given(shares, shares)
def test_targets_are_round_and_between(one, other):
    low, high = sorted((100 * one, 100 * other))
    found = _targets(low, high)
    assert found == sorted(set(found)) and all(low < each <= high + 1e-6 for each in found if high - low > 1e-6)
    assert len(found) >= 5 or high - low < 0.6
    assert {each for each in range(90, 100) if low < each <= high} <= set(found)


@quick
@given(st.lists(shares, min_size=5, max_size=60))
def test_a_histogram_counts_each_run_once(runs, accuracies):
    figure = run_figures([runs([[(accuracy, 1.0)] for accuracy in accuracies])])["accuracy-histogram"]
    (line,) = figure.lines
    assert line.area and sum(line.y[1:-1:2]) == len(accuracies) and line.y[0] == line.y[-1] == 0
    assert list(line.x[::2]) == list(line.x[1::2])
    for low, high, count in zip(line.x[1:-1:2], line.x[2::2], line.y[1:-1:2], strict=True):
        assert low < high and count == sum(low <= 100 * accuracy + 1e-7 < high for accuracy in accuracies)
    assert len(line.y) / 2 - 1 <= 2 * len(accuracies) ** (1 / 3) + 3  # bars, by Rice's rule


@quick
@given(histories)
def test_the_axis_shows_all_means_and_runs_and_no_impossible_accuracy(runs, histories):
    for figure in run_figures([runs(histories)]).values():
        if figure.y_range:
            low, high = figure.y_range
            assert low >= 0 and (high <= 100 or "accuracy" not in figure.ylabel)
            assert all(low - 1e-9 <= y <= high + 1e-9 for line in figure.lines for y in line.y)


def test_a_histogram_needs_five_runs(runs):
    five = [[(0.9 + place / 1000, 1.0)] for place in range(5)]
    assert "accuracy-histogram" not in run_figures([runs(five[:4])])
    figure = run_figures([runs(five), runs(five[:4], "few")])["accuracy-histogram"]
    (line,) = figure.lines
    assert line.color == 0 and figure.title.split("\n")[2] == "n=5; an abacus (1 thread)"


def test_files_of_the_same_names_are_replaced_and_others_stay(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("loss-by-epoch.svg", "accuracy-histogram.png", "notes.png"):
        (tmp_path / name).write_text("mine")
    monkeypatch.setattr(plots, "run_figures", lambda groups: {"loss-by-epoch": Figure("x", "y", ())} if groups else {})
    files = draw_runs([Runs("any", ())], tmp_path)
    names = [f"loss-by-epoch.{form}" for form in ("png", "svg", "pdf")]
    assert [file.name for file in files] == names
    kept = {file.name for file in tmp_path.iterdir() if file.read_bytes() == b"mine"}
    assert kept == {"accuracy-histogram.png", "notes.png"} and {file.name for file in tmp_path.iterdir()} == {
        *names,
        *kept,
    }
    with pytest.raises(UserError, match=r"^no run is finished; allowed: runs with an epoch or more$"):
        draw_runs([], tmp_path)


def test_any_of_them_is_drawn(runs):
    pytest.importorskip("matplotlib")
    figures = run_figures([runs([*FIRST, *FIRST, *FIRST]), runs(FIRST, "_other $x$")])
    assert tuple(figures) == STEMS
    for stem in ("accuracy-by-seconds", "time-to-accuracy", "accuracy-histogram"):
        assert isinstance(figures[stem], Figure) and ">runs<" in figures["accuracy-histogram"].svg(stem)
