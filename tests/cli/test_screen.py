import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fastcifar.cli import screen
from fastcifar.data import Dataset
from fastcifar.recipes import EvaluateConfig, Recipe, SelectConfig


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


def images(name, **val):
    x, y = np.zeros((50_000, 2, 2, 3), np.uint8), np.zeros(50_000, int)
    return Dataset.from_arrays(x, y, x[:10_000], y[:10_000], std=(1, 1, 1), name=name, **val)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"epochs": 10.0}, "10 epochs of 97 steps of 512 images on cpu"),
        ({"epochs": 1}, "1 epoch of 97 steps of 512 images on cpu"),
        ({"epochs": 7.59}, "7.59 epochs of 97 steps of 512 images on cpu"),
        ({"select": SelectConfig(keep=0.75)}, "10 epochs of up to 97 steps of 512 images on cpu"),
    ],
)
def test_the_header_says_how_many_epochs_of_how_many_steps(fields, line):
    dataset = images("cifar10")
    place = {"device": SimpleNamespace(type="cpu"), "dtype": "torch.bfloat16"}
    trainer = SimpleNamespace(
        recipe=Recipe(**fields), dataset=dataset, timeline=SimpleNamespace(steps_per_epoch=97), **place
    )
    lines = screen.header(trainer, [3]).splitlines()
    assert lines[0] == "davidnet on cifar10: 50,000 training, 10,000 test images"
    assert lines[1].startswith(line) and lines[1].endswith("bfloat16), seed 3")


def test_the_columns_and_the_header_say_which_images_have_labels():
    x, y = np.zeros((5, 2, 2, 3), np.uint8), [0] * 5
    three = Dataset.from_arrays(x, y, x, x_val=x[:2], y_val=y[:2], std=(1, 1, 1))
    assert screen.tested(three) == {"val acc": "val_accuracy"}
    assert screen.tested(three.hold_out(2)) == {"held-out": "test_accuracy", "val acc": "val_accuracy"}
    assert screen.tested(images("cifar10")) == {"test acc": "test_accuracy"}
    assert screen.tested(Dataset.from_arrays(x, y, x, std=(1, 1, 1))) == {"test acc": "test_accuracy"}
    measured = three.labeled_test()
    assert (measured.tested, measured.test, measured.val) == ("validation", three.val, None)
    assert measured.labeled_test() is measured


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (95, "2 min"), (3300, "55 min"), (7800, "2 h 10 min")]
)
def test_durations_are_said_in_two_figures(seconds, text):
    assert screen.duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show_a_run(show):
    show.say("header")
    show.begin(total_steps=4)
    show.step(2, 4)
    show.epoch(SimpleNamespace(epoch=1, train_loss=1.5, train_accuracy=0.5, test_accuracy=None, seconds=3.21))
    show.step(4, 4)
    show.epoch(SimpleNamespace(epoch=2, train_loss=1.25, train_accuracy=0.75, test_accuracy=0.625, seconds=6.5))
    show.end()


ROWS = """\
header
epoch  train loss  train acc   test acc    seconds
    1      1.5000     50.00%          -        3.2
    2      1.2500     75.00%     62.50%        6.5
"""


def test_rows_go_to_standard_output_and_the_bar_to_a_terminal_on_standard_error(capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_a_run(screen.Screen(silent=False, bar=True))
    assert capsys.readouterr().out == ROWS
    assert "2/4" in terminal.getvalue()


def test_no_bar_is_drawn_where_standard_error_is_not_a_terminal(capsys):
    show_a_run(screen.Screen(silent=False, bar=True))
    assert capsys.readouterr() == (ROWS, "")


def test_a_silent_screen_says_nothing(capsys):
    show_a_run(screen.Screen(silent=True, bar=False))
    assert capsys.readouterr() == ("", "")
