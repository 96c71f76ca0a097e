"""When the states of a training are kept."""

import dataclasses
import types

import pytest

from fastcifar.errors import UserError
from fastcifar.interval import Interval, read_interval
from fastcifar.record import EpochRow
from fastcifar.training import Checkpoints, checkpoint
from fastcifar.training.timeline import Timeline
from tests.small import MLP


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("auto", Interval()),
        ("never", Interval(never=True)),
        ("2", Interval(epochs=2)),
        (0.5, Interval(epochs=0.5)),
        ("10min", Interval(seconds=600)),
        ("90s", Interval(seconds=90)),
        ("1.5 h", Interval(seconds=5400)),
    ],
)
def test_intervals_are_epochs_or_times(text, interval):
    assert read_interval(text) == read_interval(interval) == interval == Checkpoints("x", text).every


@pytest.mark.parametrize("text", ["", "0", "-1", "0s", "nan", "inf", "1e3", "10 m", "2 epochs", True, None, "9" * 400])
def test_a_wrong_interval_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"^--checkpoint-every is .*; allowed: auto, never, a number of epochs") as said:
        read_interval(text, "--checkpoint-every")
    assert "\n" not in str(said.value)


class Clock:
    """A monotonic clock that stands still unless it is put on; a state takes a second to write."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(checkpoint, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(checkpoint, "write_state", self.write)

    def write(self, path, state):
        self.now += 1


def kept_steps(monkeypatch, every, step_seconds, epochs=6):
    """The steps after which a state is kept of a training with 6 steps an epoch of `step_seconds`, none of it made."""
    clock, kept, checkpoints = Clock(monkeypatch), [], Checkpoints("no folder", every)
    timeline = Timeline(dataclasses.replace(MLP, epochs=epochs), 100, 32)
    state = types.SimpleNamespace(step=0, processes=None)
    state.state_dict = lambda: kept.append(state.step) or {"step": state.step}
    checkpoints.on_start(types.SimpleNamespace(state=state, timeline=timeline, total_steps=timeline.total_steps))
    for epoch in timeline.epochs:
        while state.step < epoch.end:
            state.step += 1
            clock.now += step_seconds
            checkpoints.on_step(state.step, timeline.total_steps)
        checkpoints.on_epoch(EpochRow(epoch.number + 1, 1.0, 0.1, None, 1.0))
    return kept


@pytest.mark.parametrize(
    ("every", "step_seconds", "steps"),
    [
        ("auto", 3, []),  # 108 s in all
        ("auto", 4, [6, 36]),  # 144 s: a state costs 1 s, so the next is due after 100 s
        ("auto", 20, [6, 12, 18, 24, 30, 36]),
        ("auto", 250, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36]),  # within epochs after 10 minutes
        ("never", 1000, []),
        (2, 0, [12, 24, 36]),
        (2.5, 1, [15, 30]),
        ("0.5", 9, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36]),
        (0.01, 0, list(range(1, 37))),
        ("10s", 4, list(range(3, 37, 3))),
        ("10min", 4, []),
    ],
)
def test_states_are_kept_when_they_are_due(monkeypatch, every, step_seconds, steps):
    assert kept_steps(monkeypatch, every, step_seconds) == steps


def test_automatic_states_cost_less_than_a_hundredth_of_the_time(monkeypatch):
    for step_seconds in (5, 17, 90):
        kept = kept_steps(monkeypatch, "auto", step_seconds, epochs=20)
        assert kept and len(kept[1:]) <= 0.01 * 120 * step_seconds
