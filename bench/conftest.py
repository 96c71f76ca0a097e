"""The fixtures of the benchmark suites: the sizes, the device, and how work is timed beside the reference."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import pytest
import torch

from bench.cases import Case, in_turn, lacking_for_compile
from bench.timing import WORKLOADS, Reference, copy_rate, fit_rounds, synchronize
from fastcifar.kernels import keep_freed_memory

CUDA = torch.cuda.is_available()
TURNS = 5
"""All benchmarks are gone through so many times, so that what troubles the machine for a while troubles one turn."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="benchmarks at the recipes' own sizes, as always on a GPU")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"reference(name): the workload a result is a ratio to: {', '.join(WORKLOADS)}")
    config.addinivalue_line("markers", "unstable(reason): shown when results are compared, and never a failure")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "turn" in metafunc.fixturenames:
        turns = 1 if metafunc.config.getoption("benchmark_disable") else TURNS
        metafunc.parametrize("turn", [pytest.param(turn, id=f"turn{turn}") for turn in range(turns)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the benchmarks turn by turn; the unstable ones have one turn."""

    def turn(item: pytest.Item) -> int:
        return item.callspec.params.get("turn", 0) if hasattr(item, "callspec") else 0

    repeated = [item for item in items if turn(item) and item.get_closest_marker("unstable")]
    config.hook.pytest_deselected(items=repeated)
    items[:] = sorted((item for item in items if item not in repeated), key=turn)


@pytest.fixture(scope="session")
def device() -> torch.device:
    if not CUDA:
        keep_freed_memory()  # as the command line does
    return torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(scope="session")
def full(pytestconfig) -> bool:
    """True where benchmarks have the recipes' own sizes; else each ends in seconds on a CPU."""
    return CUDA or pytestconfig.getoption("full")


@pytest.fixture(scope="session")
def reference(device) -> Reference:
    return Reference(device)


@pytest.fixture(scope="session")
def copy_bandwidth(device) -> float:
    """Bytes/s, read and written, of a copy in this session."""
    return copy_rate(device)["rate"]


@pytest.fixture
def timed(request, benchmark, device, reference, full, turn):
    """`timed(work)`: time `work()` beside the reference, in rounds; True unless benchmarks are disabled. A round of
    brief work is several `calls`, as `extra_info` says; pytest-benchmark's own figures are of whole rounds.
    `bench.compare` takes the median of the turns.

    `extra_info` gets the `ratio`, by which results are compared: the median over the rounds of the work's seconds to
    those of the workload that the marker `reference` names, and the `spread` of these, half the distance of their
    quartiles as a share of the ratio. The workload is called before and after each round and the shorter one counts:
    on a busy machine one of two brief calls is seldom interrupted, and a mean would often be.
    """

    def run(work: Callable[[], object], count: int | None = None) -> bool:
        if benchmark.disabled:
            benchmark.pedantic(work)
            return False
        calls, fitting, warms_up = fit_rounds(work, device, reference)
        around: list[dict[str, float]] = []

        def one_round() -> None:
            for _ in range(calls):
                work()
            synchronize(device)

        def before_round() -> None:
            around.append(reference.seconds())
            if warms_up:
                work()

        benchmark.pedantic(one_round, setup=before_round, rounds=count or fitting)
        around.append(reference.seconds())
        seconds = benchmark.stats.stats.data
        name, unstable = _marked(request, "reference") or "product", _marked(request, "unstable")
        beside = [min(before[name], after[name]) for before, after in itertools.pairwise(around)]
        ratios = [one / calls / other for one, other in zip(seconds, beside, strict=True)]
        ratio, (low, _, high) = statistics.median(ratios), statistics.quantiles(ratios, n=4)
        benchmark.extra_info.update(
            reference=name,
            ratio=ratio,
            spread=(high - low) / 2 / ratio,
            calls=calls,
            reference_seconds={workload: statistics.median(one[workload] for one in around) for workload in WORKLOADS},
            unstable=unstable,
            full=full,
            device=device.type,
            threads=torch.get_num_threads(),
        )
        return True

    return run


def _marked(request: pytest.FixtureRequest, name: str) -> str | None:
    marker = request.node.get_closest_marker(name)
    return marker.args[0] if marker else None


@pytest.fixture
def measure(timed, benchmark, device, copy_bandwidth):
    """`measure(case, variant)`: time one variant of a case of `bench.kernel_cases`.

    `extra_info` gets the bytes that the operation must move and the share of the copy bandwidth that this came to.
    """

    def run(case: Case, variant: str) -> None:
        benchmark.group = case.operation
        if variant == "compiled" and (lacking := lacking_for_compile(device)):
            pytest.skip(f"torch.compile needs {lacking}")
        if timed(in_turn(case, variant, device)):
            rate = case.bytes_moved * benchmark.extra_info["calls"] / benchmark.stats.stats.median
            benchmark.extra_info.update(
                variant=variant, bytes_moved=case.bytes_moved, share_of_copy_bandwidth=round(rate / copy_bandwidth, 3)
            )

    return run
