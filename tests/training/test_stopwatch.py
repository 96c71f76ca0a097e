"""The stopwatch counts its blocks and nothing else, and is read when one likes."""

import time

import pytest
import torch

from fastcifar.training import Stopwatch
from fastcifar.training.stopwatch import HostEvent

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_seconds_are_those_of_the_blocks(clock):
    watch = Stopwatch(CPU)
    assert watch.seconds == 0
    for inside, between in ((1.0, 16.0), (2.0, 32.0)):
        with watch:
            clock[0] += inside
        clock[0] += between
    assert watch.seconds == pytest.approx(3.0)


def test_a_block_that_fails_is_counted(clock):
    watch = Stopwatch(CPU)
    with pytest.raises(ZeroDivisionError), watch:
        clock[0] += 1.0
        raise ZeroDivisionError
    assert watch.seconds == pytest.approx(1.0)


def test_a_lap_stays_as_it_was_at_the_end_of_its_block(clock):
    watch, laps = Stopwatch(CPU), []
    for inside in (1.0, 2.0, 4.0):
        with watch:
            laps.append(watch.lap())
            clock[0] += inside
    assert [lap.seconds for lap in laps] == pytest.approx([1.0, 3.0, 7.0])


def test_a_lap_is_over_when_the_device_has_come_to_its_end(monkeypatch):
    passed = set()
    monkeypatch.setattr(HostEvent, "query", lambda event: event in passed)
    watch, laps = Stopwatch(CPU), []
    for _ in range(2):
        with watch:
            laps.append(watch.lap())
    assert [lap.over for lap in laps] == [False, False]
    passed.update(laps[0].blocks[-1])
    assert [lap.over for lap in laps] == [True, False]


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for_between_blocks():
    watch, laps = Stopwatch(torch.device("cuda")), []
    for _ in range(2):
        with watch:
            torch.cuda._sleep(50_000_000)
            laps.append(watch.lap())
    assert not laps[1].over
    assert 0 < laps[0].seconds < laps[1].seconds == watch.seconds
    assert laps[1].over
