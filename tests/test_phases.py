"""The seconds of a process by phase, which sum to the whole."""

import time

import pytest

from fastcifar.phases import OTHER, Phases, process_seconds


def test_the_parts_sum_to_the_process():
    earlier = process_seconds()
    phases = Phases("start")
    with phases("data"):
        time.sleep(0.02)
    with phases("data"):
        time.sleep(0.02)
    total, seconds = phases.total, phases.restart()
    assert list(seconds) == ["start", "data", OTHER]
    assert sum(seconds.values()) == pytest.approx(total, abs=0.05)
    assert seconds["data"] >= 0.04
    assert abs(seconds["start"] - earlier) < 1


def test_a_phase_within_a_phase_is_taken_out_of_it():
    phases = Phases()
    with phases("outer"):
        with phases("inner"):
            time.sleep(0.05)
        time.sleep(0.01)
    seconds = phases.restart()
    assert seconds["inner"] >= 0.05
    assert 0.01 <= seconds["outer"] < seconds["inner"]


def test_a_failure_ends_its_phase():
    phases = Phases()
    with pytest.raises(KeyError), phases("data"):
        raise KeyError
    time.sleep(0.01)
    seconds = phases.restart()
    assert seconds["data"] < 0.01 <= seconds[OTHER]


def test_a_restart_counts_anew():
    phases = Phases("start")
    first = phases.restart()
    time.sleep(0.01)
    with phases("data"):
        pass
    assert sum(first.values()) > phases.total >= 0.01
    assert list(phases.restart()) == ["data", OTHER]


def test_process_seconds_runs_on():
    first = process_seconds()
    assert 0 < first <= process_seconds()
