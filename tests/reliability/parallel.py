"""Many runs by several processes at once, killed at random moments, against one process that nobody disturbs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.report import summarize
from tests.reliability.trainings import ROOT, Ended, Training, same

_STARTS = 3.0
"""From one kill to the next: at most so many times as long as from a process's start to the end of its first run."""


@dataclass(frozen=True)
class _Launched(Training):
    """A training by ranks of torchrun, which starts them again where one dies."""

    def start(self, *, resume: bool = False, **options: Any) -> subprocess.Popen[str]:
        words = ("--resume", str(self.folder)) if resume else (*self.arguments, "--out", str(self.folder))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1000"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [*launcher, "-m", "fastcifar", "train", *words]
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes, **options)


WAYS: dict[str, tuple[type[Training], tuple[str, ...]]] = {
    "--parallel 2": (Training, ("--parallel", "2", "--threads", "2")),
    "2 ranks of torchrun": (_Launched, ()),
}


def figures(folder: Path, runs: int, seed: int) -> Iterator[tuple[str, str, int, tuple[str, ...]]]:
    """Give what, the figure, n and what went wrong, of `runs` runs in each way."""
    whole = Training.of("averages", folder / "whole", "--runs", str(runs), "--checkpoint-every", "0.3")
    ended = whole.run(seconds=3600)
    assert ended.status == 0, ended.errors
    expected = whole.made()
    first = json.loads((whole.folder / "seed-0/run.json").read_text())["process_seconds"]
    for way, (kind, more) in WAYS.items():
        place, chance = folder / way.replace(" ", "-"), random.Random(f"{seed} {way}")
        training = kind(place, (*whole.arguments, *more))
        kills, wrong = _kill_until_done(training, chance, _STARTS * first)
        wrong += _differences(place, training.made(), whole.folder, expected, runs)
        killed = ", ".join(f"{times} {what}" for what, times in sorted(kills.items()))
        value = f"{runs - len(wrong)} of {runs} runs there once, statistics and bits as undisturbed" if wrong else ""
        value = value or f"{runs} runs, each there once; statistics and bits as of one process that nobody killed"
        yield f"{runs} runs by {way}, killed at random moments ({killed})", value, sum(kills.values()), tuple(wrong)


def _differences(folder: Path, made: dict[str, str], whole: Path, expected: dict[str, str], runs: int) -> list[str]:
    """Return what of the folder's runs is lost, there twice, or another than in the folder `whole`."""
    found = [[json.loads(line) for line in (each / "runs.jsonl").read_text().splitlines()] for each in (folder, whole)]
    seeds = Counter(line["seed"] for line in found[0])
    wrong = [f"seed {seed} is there {seeds[seed]} times" for seed in {*range(runs), *seeds} if seeds[seed] != 1]
    ours, theirs = (summarize(sorted(line["tta_accuracy"] for line in lines)) for lines in found)
    wrong += [f"statistics: {ours} and {theirs}"] * (ours != theirs)
    return wrong + [f"{name} differs" for name in same(made, expected)]


def _kill_until_done(training: Training, chance: random.Random, most: float) -> tuple[Counter[str], list[str]]:
    """Train, kill a process after up to `most` seconds each time, go on where that ended the command, and return how
    often what was killed, and what went wrong."""
    kills, wrong, resume = Counter[str](), list[str](), False
    while True:
        process = training.start(resume=resume)
        struck = False
        while process.poll() is None:
            try:
                process.wait(chance.uniform(0, most))
            except subprocess.TimeoutExpired:
                children = _children(process.pid)
                what = chance.choices(["workers", "parents", "parents by SIGTERM"], [8, 1, 1])[0]
                victim = chance.choice(children) if what == "workers" and children else process.pid
                what = what if victim != process.pid or what != "workers" else "parents"
                struck |= _send(victim, signal.SIGTERM if what == "parents by SIGTERM" else signal.SIGKILL)
                kills[what] += 1
        if isinstance(training, _Launched):  # ranks outlive a launcher that was killed; others end with their parent
            for child in _named(training.folder):
                _send(child, signal.SIGKILL)
        left = Ended.of(process)
        if left.status == 0:
            return kills, wrong
        if not struck:
            return kills, [*wrong, f"status {left.status}: {left.errors[-2000:]}"]
        resume = (training.folder / "unfinished.json").is_file()


def _send(process: int, number: int) -> bool:
    try:
        os.kill(process, number)
    except ProcessLookupError:  # it ended just now
        return False
    return True


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Give each process and the fields of its /proc/PID/stat from the state on."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), path.read_text().rpartition(")")[2].split()
        except (OSError, ValueError):  # it ended
            continue


def _children(parent: int) -> list[int]:
    """Return the processes that train, of those that `parent` has started."""
    found = [process for process, fields in _stats() if int(fields[1]) == parent and fields[0] != "Z"]
    return [process for process in found if b"resource_tracker" not in _command(process)]


def _named(folder: Path) -> list[int]:
    """Return the processes whose command names a folder; torchrun's ranks have sessions of their own."""
    name = os.fsencode(folder)
    return [process for process, fields in _stats() if fields[0] != "Z" and name in _command(process).split(b"\0")]


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
