"""The peers: each one's program, how it is run, and our recipe that does the same work."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.peers import airbench, cifar10_fast, fulcrum, hlb, warm_start
from bench.peers.harness import Harness
from fastcifar.errors import UserError

EQUAL = Path(__file__).resolve().parent / "equal"
TOLERANCE = 0.003
"""How far a peer's accuracy may be below the published mean: twice the spread of a seed (0.0015 by fulcrum's runs)."""
OURS = "fastcifar:"  # A peer of this prefix is ours: the name of a recipe, or the path of a TOML file, follows


@dataclass(frozen=True)
class Program:
    """One peer."""

    checkout: str  # its folder among the checkouts, as its repository is called
    load: Callable[[Path, Harness], Callable[[int], None]]
    """Returns, for a checkout, a function that trains once from a seed, by their code."""
    batch_size: int  # images of a training step
    equal: str  # our recipe, a file of the folder `equal`, whose training step is the same work
    rival: str | None  # our recipe whose whole training is set beside theirs, None: theirs has no end worth timing
    cpu_dtype: str = ""  # what it computes in on a CPU; "": the `cpu_type`
    cuda_dtype: str = "float16"
    accuracy: float | None = None
    """What it reaches by its publication, with its test-time augmentation; a whole training that stays more than
    `TOLERANCE` below does not count. None: not known, and not checked."""
    rule: str = "own_seconds"
    """The stopwatch of ours that theirs is: own_seconds (with the last evaluation) or train_seconds (without)."""
    cpu_only: bool = False  # another is the same program on CUDA
    stops_after: int | None = None  # steps of a run that is given none, for a program without an end


_FULCRUM = partial(Program, "cifar-10-speedrun", batch_size=1536, rival="speedrun94", rule="train_seconds")
PROGRAMS: dict[str, Program] = {
    "airbench94_muon": Program(
        "cifar10-airbench", airbench.load_muon, 2000, "airbench94_muon", "speedrun94", accuracy=0.9401
    ),
    "airbench95": Program("cifar10-airbench", airbench.load_95, 1024, "airbench95", "speedrun95", accuracy=0.9501),
    "airbench96": Program("cifar10-airbench", airbench.load_96, 1024, "airbench96", "speedrun96", accuracy=0.9603),
    "airbench96_faster": Program(
        "cifar10-airbench", airbench.load_96_faster, 512, "airbench96_faster", "speedrun96", accuracy=0.96
    ),
    "cifar10-speedrun": Program(
        "cifar10-speedrun", airbench.load_speedrun, 1536, "cifar10-speedrun", "speedrun94", accuracy=0.9401
    ),
    "fulcrum-e1": _FULCRUM(fulcrum.load_e1, equal="fulcrum-e1", accuracy=0.9405),
    "fulcrum-e5": _FULCRUM(fulcrum.load_e5, equal="fulcrum-e5", accuracy=0.9398),
    "hlb-CIFAR10": Program(
        "hlb-CIFAR10", hlb.load, 1024, "hlb-CIFAR10", "speedrun94", accuracy=0.94, rule="train_seconds"
    ),
    "cifar10-fast": Program(
        *("cifar10-fast", cifar10_fast.load, 512, "cifar10-fast", "davidnet", "float32"),
        accuracy=0.94,
        rule="train_seconds",
    ),
    "warm_start": Program(
        "warm_start", warm_start.load, 128, "warm_start", None, "float32", "float32", stops_after=200
    ),
}
PROGRAMS["cifar10-fast-bfloat16"] = replace(
    PROGRAMS["cifar10-fast"], load=partial(cifar10_fast.load, dtype="bfloat16"), cpu_dtype="bfloat16", cpu_only=True
)
COLD = ("airbench94_muon", "cifar10-speedrun")
"""Peers that compile for minutes: their cold start is measured unless others are named."""


def missed(name: str, accuracies: Sequence[float | None]) -> str:
    """Return what whole trainings of the peer `name` reached on the mean, in words, where that is not the accuracy that
    it publishes: their time says nothing then. Else ""."""
    published = PROGRAMS[name].accuracy if name in PROGRAMS else None
    found = [accuracy for accuracy in accuracies if accuracy is not None]
    if published is None or not found or statistics.fmean(found) >= published - TOLERANCE:
        return ""
    return f"left out: {statistics.fmean(found):.2%} is not its own {published:.2%}"


def get_program(name: str) -> Program:
    """Return the peer of that name. Raises UserError where there is none."""
    if name not in PROGRAMS:
        raise UserError(f"peer is {name!r}; allowed: {', '.join(PROGRAMS)}, or {OURS}RECIPE")
    return PROGRAMS[name]
