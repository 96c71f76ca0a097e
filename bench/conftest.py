"""Fixtures of the benchmark suites: the device, and the ceiling that a result is a share of."""

import itertools
import shutil
from time import perf_counter

import pytest
import torch

CUDA = torch.cuda.is_available()
L2_BYTES = 128 << 20
"""More than the L2 cache of any GPU of today: inputs are rotated over at least this much."""


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if CUDA else "cpu")


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


@pytest.fixture(scope="session")
def copy_bandwidth(device) -> float:
    """Bytes/s, read and written, of the best of 20 copies of a tensor larger than the caches, in this session."""
    source = torch.empty((256 if CUDA else 64) << 20, dtype=torch.uint8, device=device).random_()
    target, best = torch.empty_like(source), float("inf")
    for _ in range(20):
        synchronise()
        start = perf_counter()
        target.copy_(source)
        synchronise()
        best = min(best, perf_counter() - start)
    return 2 * source.numel() / best


@pytest.fixture
def measure(benchmark, copy_bandwidth):
    """`measure(variant, reference, kernel, make, bytes_moved)`: time one variant of an operation.

    `make()` returns fresh arguments. On CUDA several sets are made and used in turn, more than the L2 cache holds.
    `extra_info` gets the bytes that the operation must move and the share of the copy bandwidth that this came to.
    """

    def run(variant, reference, kernel, make, bytes_moved):
        if variant == "compiled" and not shutil.which("c++"):
            pytest.skip("torch.compile needs a C++ compiler")
        function = {"reference": reference, "kernel": kernel}.get(variant) or torch.compile(reference)
        sets = [make() for _ in range(1 + (L2_BYTES // bytes_moved if CUDA else 0))]
        turn = itertools.cycle(sets)

        def once():
            function(*next(turn))
            synchronise()

        once()
        benchmark.pedantic(once, rounds=100 if CUDA else 5, warmup_rounds=2)
        if not benchmark.stats:  # --benchmark-disable: called once, not timed
            return
        rate = bytes_moved / benchmark.stats.stats.median
        benchmark.extra_info.update(
            variant=variant, bytes_moved=bytes_moved, share_of_copy_bandwidth=round(rate / copy_bandwidth, 3)
        )

    return run
