"""How long a call takes on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastcifar.training.capture import record
from fastcifar.training.stopwatch import Stopwatch


def seconds_per_call(call: Callable[[], object], device: torch.device, calls: int = 20, repeats: int = 5) -> float:
    """Seconds that one call takes on the device: the best of `repeats` rows of `calls`, after two that are not
    counted. On CUDA a row is one captured graph, as in a training, so that no launch is waited for, replayed a few
    times; calls that cannot be captured are queued one by one."""
    for _ in range(2):
        call()
    row = _captured_row(call, calls) if device.type == "cuda" else None

    replays = 4 if row else 1

    def run_row() -> None:
        if row:
            for _ in range(replays):
                row()
        else:
            for _ in range(calls):
                call()

    best = float("inf")
    for _ in range(repeats):
        with Stopwatch(device) as stopwatch:
            run_row()
        best = min(best, stopwatch.seconds / (replays * calls))
    return best


def _captured_row(call: Callable[[], object], calls: int) -> Callable[[], None] | None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    try:
        # Every result is held: else all would be written to the same memory, and found in the cache.
        graph = record(lambda: [call() for _ in range(calls)])
    except RuntimeError:
        return None
    graph.replay()
    return graph.replay
