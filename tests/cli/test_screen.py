import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastcifar.cli import screen
from fastcifar.experiments import Diverged
from fastcifar.experiments.runner import Progress
from fastcifar.recipes import EvaluateConfig, Recipe


@pytest.fixture
def record(new_record):
    def make(accuracy=0.9411, tta_accuracy=0.9432, recipe=None, val_accuracy=None):
        scores = {"accuracy": accuracy, "tta_accuracy": tta_accuracy, "val_accuracy": val_accuracy}
        seconds = {"train_seconds": 26.1, "time_seconds": 26.3, "process_seconds": 31.0}
        return new_record(recipe=recipe or Recipe(), **scores, **seconds)

    return make


def test_the_result_line_holds_accuracies_and_stopwatches_then_remarks(record):
    line = "davidnet  94.11% (tta 94.32%)  train 26.1 s  time 26.3 s  process 31.0 s"
    assert screen.result_line(record()) == line
    assert screen.result_line(record(), ["holdout 5000", "quick"]) == f"{line}  holdout 5000  quick"


def test_the_result_line_of_a_recipe_without_tta_holds_one_accuracy(record):
    recipe = Recipe(name="plain", evaluate=EvaluateConfig(tta="none"))
    assert screen.result_line(record(0.9, 0.9, recipe)).startswith("plain  90.00%  train")


def test_the_summary_line_holds_means_spread_n_and_interval(record):
    records = [record(0.94, 0.942), record(0.941, 0.943), record(0.942, 0.944)]
    assert screen.summary_line(records, ["synthetic"]) == (
        "davidnet  94.10% (tta 94.30%)  n=3  tta std dev 0.10%  95% interval 94.05% to 94.55%  synthetic"
    )


def test_the_summary_of_one_run_has_no_interval(record):
    assert screen.summary_line([record()]) == "davidnet  94.11% (tta 94.32%)  n=1, no interval"
    assert screen.summary_table([record()]).splitlines()[1].split()[1:5] == ["94.11%", "-", "1", "none"]


def test_runs_on_images_without_labels_have_no_accuracy(record):
    runs = [record(None, None), record(None, None)]
    assert screen.result_line(runs[0]).startswith("davidnet  no test labels  train 26.1 s")
    assert screen.summary_line(runs, ["mine"]) == "davidnet  no test labels  n=2  mine"
    assert [line.split()[0] for line in screen.summary_table(runs).splitlines()[1:]] == ["train", "time", "process"]


def test_accuracies_on_validation_images_are_said_too(record):
    both, alone = record(val_accuracy=0.9), [record(None, None, val_accuracy=value) for value in (0.5, 0.6)]
    assert screen.result_line(both).startswith("davidnet  94.11% (tta 94.32%)  val 90.00%  train 26.1 s")
    assert screen.result_line(alone[0]).startswith("davidnet  val 50.00%  no test labels  train 26.1 s")
    line = "davidnet  val 55.00%  no test labels  n=2  val std dev 7.07%  95% interval -8.53% to 118.53%"
    assert screen.summary_line(alone) == line
    assert screen.summary_table(alone).splitlines()[1].split()[:4] == ["val", "accuracy", "55.00%", "7.07%"]


def test_the_summary_table_has_a_line_for_each_accuracy_and_stopwatch(record):
    lines = screen.summary_table([record(0.94, 0.942), record(0.942, 0.944)]).splitlines()
    assert lines[1].split() == ["accuracy", "94.10%", "0.14%", "2", "92.83%", "to", "95.37%", "94.00%", "94.20%"]
    assert [line.split()[0] for line in lines[1:]] == ["accuracy", "tta", "train", "time", "process"]


def test_what_runs_say_so_far_is_in_the_line_or_in_the_bar_by_their_arm(record, monkeypatch):
    bars = []
    show = SimpleNamespace(silent=False, draws=False, shows_bars=False, runs=lambda *bar: bars.append(bar))
    gathered = screen.Gathered(show, arms=True)
    told = [("a/seed-0", record()), ("[b]/seed-0", Diverged("no")), ("a/seed-1", record(tta_accuracy=0.9))]
    progress = [Progress(number, 4, key, outcome, False, 60.0) for number, (key, outcome) in enumerate(told, start=1)]
    said = [gathered.note(each) for each in progress]
    assert said == ["", "", "a mean 92.16%, 95% interval 64.71% to 119.61%, n=2"]
    assert bars[1] == (2, 4, "", [], 60.0)
    assert bars[2] == (3, 4, "a mean 92.16% ± 27.45", [0.9432, 0.9], 60.0)
    show.shows_bars = True
    assert gathered.note(Progress(4, 4, "a/seed-2", record(None, None, val_accuracy=0.8))) == ""
    assert bars[-1][3] == [0.9432, 0.9, 0.8]
    show.silent = True
    assert gathered.note(Progress(5, 9, "a/seed-3", record())) == "" and len(bars) == 4, "nobody sees it"
    show.silent, kept = False, Progress(6, 9, "a/seed-4", record(tta_accuracy=0.7), kept=True)
    assert gathered.note(kept) == "" and len(bars) == 4, "the next one that is trained tells of it too"
    gathered.note(Progress(7, 9, "a/seed-5", record(tta_accuracy=0.6)))
    assert bars[-1][3] == [0.9432, 0.9, 0.8, 0.9432, 0.7, 0.6]


@pytest.mark.parametrize("columns", [60, 80])
def test_what_a_command_ends_with_fits_into_a_terminal(record, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    recipe = Recipe(name="a-very-long-name-of-a-recipe-that-is-of-no-further-use")
    records, show = [record(accuracy, accuracy, recipe) for accuracy in (0.94, 0.9123)], screen.Screen(bar=False)

    def shown(several):
        screen.conclude(records, Path("runs/some"), ["holdout 5000"], several, False, show)
        return capsys.readouterr().out

    for several in (True, False):
        whole = shown(several)
        with monkeypatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda: True)
            lines = shown(several).splitlines()
        assert max(map(len, lines)) <= columns < max(map(len, whole.splitlines()))
        assert " ".join(lines).split() == whole.split()
    assert max(map(len, screen.summary_table(records).splitlines())) <= 80
