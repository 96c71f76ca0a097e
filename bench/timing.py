"""The stopwatch of bench/: how work is timed, and the fixed work that benchmarks are set beside.

It stands on `fastcifar.training.stopwatch.Stopwatch`: the wall clock on a CPU, events on CUDA, where the device is
waited for before each measurement and at its end. What may compile or allocate runs once before it is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fastcifar.training.capture import record
from fastcifar.training.stopwatch import Stopwatch

Work = Callable[[], object]  # what is timed: a call without arguments, whose result is dropped
WORKLOADS = ("product", "copy", "convolution")  # names of the fixed work of `Reference`
_TURN_SECONDS, _FEWEST_ROUNDS = 0.6, 5
"""Seconds of a benchmark in each turn: as many rounds as fit, but at least so many."""
_ROUND_SECONDS = 0.005  # of a round, at least: briefer work is called more than once in it
_BRIEF_SECONDS = 0.02
"""Rounds below this begin with an untimed call of the work: the reference has just emptied the caches."""
_REPLAYS = 4


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Work, device: torch.device, calls: int = 1) -> float:
    """Return the seconds of one call, the mean of `calls` in a row."""
    with Stopwatch(device) as stopwatch:
        for _ in range(calls):
            call()
    return stopwatch.seconds / calls


def best_seconds(call: Work, device: torch.device, calls: int = 20, repeats: int = 5, captured: bool = True) -> float:
    """Return the seconds of one call at its best, after two that are not counted.

    call: what is timed.
    device: where it computes.
    calls: calls in a row; the row's mean counts.
    repeats: rows; the fastest counts.
    captured: on CUDA replay the row as one graph, as in a training, so that no launch is waited for. Calls that cannot
        be captured are queued one by one.
    """
    for _ in range(2):
        call()
    row = _captured_row(call, calls) if captured and device.type == "cuda" else None
    if row:
        return min(seconds_of(row, device, _REPLAYS) for _ in range(repeats)) / calls
    return min(seconds_of(call, device, calls) for _ in range(repeats))


def _captured_row(call: Work, calls: int) -> Callable[[], None] | None:
    """Return the replay of a graph of `calls` calls, which has run once; None where they cannot be captured."""
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


def copy_rate(device: torch.device, tiny: bool = False) -> dict[str, float]:
    """Time a copy that is larger than any cache: its `bytes`, read and written, `seconds`, and `rate` in bytes/s."""
    # No power of two: a graph's copies of just such sizes were seen at half the bandwidth (pytorch issue 191284).
    size = 1000 << 20 if device.type == "cuda" else 1 << 26
    values = torch.empty(size >> 6 if tiny else size, dtype=torch.uint8, device=device).random_()
    copy = torch.empty_like(values)
    seconds = best_seconds(lambda: copy.copy_(values), device, calls=5)
    return {"bytes": 2 * values.numel(), "seconds": seconds, "rate": 2 * values.numel() / seconds}


class Reference:
    """The fixed work that makes a benchmark's result a ratio, which outlives the machine it was made on.

    A matrix product is bound by arithmetic, a copy by memory, a convolution by the library of convolutions. They are
    timed just before and just after every round of a benchmark, so that a clock that drifts, or another program on the
    machine, slows both alike. Their sizes must stay: a change breaks the comparison with every result before it.

    Each takes some milliseconds, on a CPU core (float32; a product of 768 x 768 matrices, a copy of 64 MiB, a 3x3
    convolution of 32 images of 32 channels) and on a GPU (float16; 4096 x 4096, 256 MiB, 512 images of 64 channels).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        side, size, batch, channels = (4096, 256 << 20, 512, 64) if on_gpu else (768, 64 << 20, 32, 32)
        options = {"device": device, "dtype": torch.float16 if on_gpu else torch.float32}
        left, right = torch.randn(side, side, **options), torch.randn(side, side, **options)
        values = torch.randint(256, (size,), dtype=torch.uint8, device=device)
        copy = torch.empty_like(values)
        shapes = (batch, channels, 32, 32), (channels, channels, 3, 3)
        images, filters = (
            torch.randn(shape, **options).contiguous(memory_format=torch.channels_last) for shape in shapes
        )
        self._calls: dict[str, Work] = {
            "product": lambda: left @ right,
            "copy": lambda: copy.copy_(values),
            "convolution": lambda: torch.conv2d(images, filters, padding=1),
        }
        for _ in range(3):
            self.seconds()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of one call of each workload."""
        return {name: seconds_of(call, self._device) for name, call in self._calls.items()}


def fit_rounds(work: Work, device: torch.device, reference: Reference) -> tuple[int, int, bool]:
    """Choose, by a few calls of a benchmark's work, the rounds of a turn, between which the reference is timed.

    Returns the calls in a round, the rounds, and whether a round begins with an untimed call.
    """
    work()
    took = seconds_of(work, device)
    if took < _BRIEF_SECONDS:
        took = min(seconds_of(work, device) for _ in range(3))
    calls = math.ceil(_ROUND_SECONDS / took)
    took *= calls
    count = int(_TURN_SECONDS / (took + sum(reference.seconds().values())))
    return calls, max(count, _FEWEST_ROUNDS), took < _BRIEF_SECONDS
