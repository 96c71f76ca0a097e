"""Trainings that are killed again and again, at random instants, and have to end as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.trainings import RECIPES, Ended, Training, same

KINDS: dict[str, tuple[str, ...]] = {
    "everything": ("--evaluate-at-start", "--eval-every", "2"),
    "averages": (),
    "adam": ("--runs", "2"),
}
"""Further flags of each recipe's training."""


@dataclass
class Killed:
    """What came of trainings that were killed."""

    kills: int = 0
    finished: int = 0
    """Trainings that were brought to their end."""
    resumed: int = 0
    """Kills after which there was something to go on from."""
    faults: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    """How often each exit status came of a signal."""


def kill(
    folder: Path,
    kills: int,
    seed: int = 0,
    signals: Sequence[int] = (signal.SIGKILL,),
    kinds: Sequence[str] = tuple(RECIPES),
) -> Killed:
    """Kill trainings of `kinds` until `kills` signals have struck, and compare what each ends with with what it makes
    undisturbed. Two at a time."""
    found, lock = Killed(), threading.Lock()

    def chains(worker: int) -> None:
        chance = random.Random(seed * 1000 + worker)
        for number in range(10**6):
            with lock:
                if found.kills >= kills:
                    return
            kind = kinds[(number + worker) % len(kinds)]
            _chain(folder / f"{kind}-{worker}-{number}", kind, whole[kind], chance, signals, found, lock, kills)

    with ThreadPoolExecutor(2) as pool:
        whole = dict(zip(kinds, pool.map(lambda kind: _whole(folder / f"{kind}-whole", kind), kinds), strict=True))
        list(pool.map(chains, range(2)))
    return found


def _training(folder: Path, kind: str) -> Training:
    return Training.of(kind, folder, *KINDS[kind], "--checkpoint-every", "0.3")


def _whole(folder: Path, kind: str) -> tuple[dict[str, str], float]:
    """Return what a training makes that nobody disturbs, and its seconds."""
    began = time.monotonic()
    training = _training(folder, kind)
    ended = training.run()
    assert ended.status == 0, ended.errors
    return training.made(), time.monotonic() - began


def _chain(
    folder: Path,
    kind: str,
    whole: tuple[dict[str, str], float],
    chance: random.Random,
    signals: Sequence[int],
    found: Killed,
    lock: threading.Lock,
    kills: int,
) -> None:
    """Start a training, kill it and go on, until it ends by itself."""
    training, (expected, seconds) = _training(folder, kind), whole
    resume = False
    while True:
        process = training.start(resume=resume)
        number = chance.choice(list(signals))
        struck = found.kills < kills and _strike(process, number, chance.uniform(0, seconds))
        ended = Ended.of(process)
        with lock:
            found.kills += struck
            if struck and number != signal.SIGKILL:
                found.statuses[ended.status] = found.statuses.get(ended.status, 0) + 1
                allowed = {128 + number, -number, 0}
                if ended.status not in allowed or not ended.is_clear:
                    found.faults.append(f"{folder.name}: status {ended.status} of signal {number}: {ended.errors}")
                    return
            if not struck and ended.status != 0:
                found.faults.append(f"{folder.name}: status {ended.status}: {ended.errors}")
                return
            if ended.errors and number == signal.SIGKILL:
                found.faults.append(f"{folder.name}: said {ended.errors}")
        if not struck:
            break
        resume = folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())
        found.resumed += resume
    differ = same(training.made(), expected)
    with lock:
        found.finished += 1
        if differ:
            found.faults.append(f"{folder.name}: {', '.join(differ)} differ")
    if not differ:
        shutil.rmtree(folder)


def _strike(process: subprocess.Popen[str], number: int, seconds: float) -> bool:
    """Send the signal `number` to `process` after `seconds`, and return whether it was still there."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number)
        return True
    return False
