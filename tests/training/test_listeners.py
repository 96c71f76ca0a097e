"""Who hears of a training hears it in order, in full, and never while the watch runs."""

import dataclasses
import time

import pytest

from fastcifar.data.synthetic import make_synthetic
from fastcifar.errors import UserError
from fastcifar.training import Listener, Trainer, train
from tests.small import MLP as RECIPE


@pytest.fixture(scope="module")
def data():
    return make_synthetic(64, 20)


class Diary(Listener):
    """Notes what it hears."""

    def __init__(self):
        self.heard = []

    def on_start(self, trainer):
        assert (trainer.state.step, trainer.state.seed, trainer.total_steps) == (0, 3, 12)
        self.heard.append("start")

    def on_step(self, step, total_steps):
        self.heard.append((step, total_steps))

    def on_epoch(self, row):
        self.heard.append(row)

    def on_end(self, record):
        self.heard.append(record)


def test_everything_is_heard_in_order_and_is_what_the_run_says(data):
    diary, rows = Diary(), []
    run = train(RECIPE, data, seed=3, listeners=[diary, Listener(on_epoch=rows.append)])
    steps = [(step, 12) for step in range(1, 13)]
    expected = ["start"]
    for epoch in range(3):
        expected += [*steps[4 * epoch : 4 * epoch + 4], run.rows[epoch]]
    assert diary.heard == [*expected, run.record]
    assert rows == list(run.rows)


def test_a_row_has_all_that_an_epoch_came_to(data):
    run = train(RECIPE, data, seed=3, eval_every=2)
    assert [row.images for row in run.rows] == [64, 128, 192]
    schedule = RECIPE.schedule
    assert [row.learning_rate for row in run.rows] == [schedule(step / 12) for step in (4, 8, 12)]
    first, second, _ = run.rows
    assert (first.test_accuracy, first.test_loss) == (None, None)
    assert 0 <= second.test_accuracy <= 1 and second.test_loss > 0
    assert first.val_accuracy is None
    assert run.losses["test"] == {2: second.test_loss, 3: run.rows[2].test_loss}
    assert run.accuracies["train"] == {row.epoch: row.train_accuracy for row in run.rows}


def test_epoch_zero_is_the_network_before_it_was_trained(data):
    rows = []
    recipe = dataclasses.replace(RECIPE, label_smoothing=0.0)
    run = train(recipe, data, seed=3, evaluate_at_start=True, listeners=[Listener(on_epoch=rows.append)])
    plain = train(recipe, data, seed=3)
    assert [row.epoch for row in run.rows] == [0, 1, 2, 3] and rows == list(run.rows)
    assert 2 < run.losses["train"][0] < 3 and 0 <= run.accuracies["test"][0] <= 0.5
    assert run.rows[0].images == 0
    assert [row.train_loss for row in run.rows[1:]] == [row.train_loss for row in plain.rows]
    assert (run.record.epochs, run.record.steps) == (3, 12)


def test_a_validation_split_is_evaluated_beside_the_test_split(data):
    held = data.hold_out(20)
    both = dataclasses.replace(data, train=held.train, val=held.test)
    run, without = train(RECIPE, both, seed=3), train(RECIPE, held, seed=3)
    assert [row.val_accuracy for row in run.rows] == [row.test_accuracy for row in without.rows]
    assert [row.val_loss for row in run.rows] == [row.test_loss for row in without.rows]
    assert (run.record.val_accuracy, run.record.val_loss) == (without.record.accuracy, without.record.loss)
    assert list(run.losses) == ["train", "test", "val"]
    assert without.record.val_accuracy is None and "val" not in without.losses


def test_no_listener_is_called_while_the_watch_runs(data, monkeypatch):
    """By a clock that moves with what a listener takes, and otherwise next to nothing."""
    now = [0.0]

    def clock():
        now[0] += 1e-9
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)

    class Slow(Listener):
        def __init__(self):
            for name in ("on_start", "on_step", "on_epoch", "on_end"):
                setattr(self, name, self.take_long)

        def take_long(self, *heard):
            now[0] += 1.0

    run = train(RECIPE, data, listeners=[Slow()])
    assert 0 < run.rows[0].seconds < run.train_seconds < run.time_seconds < 0.01
    assert run.record.phases["listeners"] == pytest.approx(1 + 12 + 3)  # up to the record


def test_an_error_of_a_listener_is_the_trainings(data):
    def fail(row):
        raise ZeroDivisionError

    trainer = Trainer(RECIPE, data)
    with pytest.raises(ZeroDivisionError):
        trainer.run(0, listeners=[Listener(on_epoch=fail)])
    assert len(trainer.run(0).rows) == 3


def test_what_is_no_listener_is_refused_before_the_training(data):
    with pytest.raises(UserError, match=r"listeners has a list; allowed: a Listener, as in Listener\(on_epoch=print\)"):
        train(RECIPE, data, listeners=[[]])
