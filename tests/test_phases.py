"""The seconds of a process by phase, which sum to the whole."""

import time

import pytest

from fastcifar import phases as module
from fastcifar.data.synthetic import make_synthetic
from fastcifar.phases import OTHER, Phases, process_seconds
from fastcifar.training import Trainer, train
from tests.small import MLP


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


def test_the_innermost_phase_of_a_failure_is_kept():
    phases = Phases()
    with phases("first"):
        assert phases.failed is None
    with pytest.raises(KeyError), phases("outer"), phases("inner"):
        raise KeyError
    with pytest.raises(KeyError), phases("later"):
        raise KeyError
    assert phases.failed == "inner"


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


def test_without_a_name_for_it_the_time_before_is_not_counted():
    time.sleep(0.05)
    phases = Phases()
    assert phases.total < 0.05 and list(phases.restart()) == [OTHER]


@pytest.mark.parametrize("stat", ["1 (a b) " + "0 " * 19 + "99999999999 0", "1 (x) " + "0 " * 40, "", "nonsense", None])
def test_process_seconds_are_never_less_than_what_was_seen(stat, monkeypatch):
    """The kernel says that the process began later than now, with the machine, or nothing."""

    def read():
        if stat is None:
            raise OSError
        return stat

    monkeypatch.setattr(module, "_stat", read)
    seen = time.perf_counter() - module._imported
    assert 0 <= seen <= process_seconds() <= time.perf_counter() - module._imported


def test_a_run_counts_from_its_call_on():
    data, began = make_synthetic(32, 8), time.perf_counter()
    for run in (lambda: train(MLP, data, device="cpu"), Trainer(MLP, data, "cpu").run):
        for _ in range(2):
            time.sleep(0.05)  # nobody's training
            before = time.perf_counter()
            found = run()
            taken = time.perf_counter() - before
            assert 0 < found.train_seconds <= found.time_seconds <= found.process_seconds <= taken
            assert sum(found.record.phases.values()) == pytest.approx(found.process_seconds)
            assert 0 < found.record.first_step_seconds <= found.process_seconds < time.perf_counter() - began


def test_seconds_are_read_while_they_are_counted():
    phases = Phases()
    with phases("data"):
        first = phases.seconds()
        assert list(first) == ["data", OTHER]
    second, total = phases.seconds(), phases.total
    assert first["data"] <= second["data"] and sum(second.values()) <= total
    assert sum(phases.restart().values()) >= total
