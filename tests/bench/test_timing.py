"""The stopwatch of bench/."""

import torch

from bench.timing import best_seconds


def test_the_time_of_a_call_is_that_of_one_in_a_row():
    calls = []
    seconds = best_seconds(lambda: calls.append(1), torch.device("cpu"), calls=10, repeats=3)
    assert len(calls) == 2 + 3 * 10
    assert 0 < seconds < 1
