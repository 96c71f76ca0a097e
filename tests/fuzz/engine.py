"""The engine of the fuzz targets: it gives mutated inputs to a parser and reports what none may do.

A target is a module of this folder with

- `seeds() -> dict[str, bytes]`: whole, right inputs by name;
- `check(data: bytes, folder: Path) -> bool | None`: gives `data` to the parser, with files below the empty `folder`;
  returns True where it was read, False where it was refused. AssertionError: something wrong was accepted;
- perhaps `mutate(data: bytes, random: Random) -> bytes`, mutations that know the format, for half of the cases;
- perhaps `CASES`, how many the test suite runs, in place of 100;
- perhaps `true_size(data: bytes) -> int`: the bytes that the input holds when unpacked, where that is not its length.

A finding is any exception that `check` lets through; a right input that is refused; a crash; a case of more than
10 s; one that takes more memory than twice the true size and `SLACK`; a file that is written, changed or removed beside
the case's folder, and a link in it that leads out of it.

A program of our own, because no library serves: hypothesis limits neither memory nor time and does not survive a crash,
and atheris, which comes for some versions of Python alone, follows the coverage of Python code, where most parsers here
are written in C.
"""

from __future__ import annotations

import faulthandler
import hashlib
import importlib
import json
import mmap
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutations import mutated

FOLDER = Path(__file__).parent
SECONDS = 10
"""A case that takes longer hangs."""
SLACK = 48 << 20
"""Bytes that a case may take beside twice the true size: malloc takes address space in pieces of up to 32 MiB and keeps
it, and what a case compares with takes some. A claim that is believed takes far more."""
MOST = 8 << 30
"""Bytes of address space that a worker may add, so that a case that believes a claim does not take the machine down."""
DISTINCT = 20
"""A target with so many different findings is fuzzed no further."""


@dataclass
class Target:
    """A parser and its inputs: the functions of a target's module, with its own defaults for the optional ones."""

    name: str
    inputs: dict[str, bytes]
    check: Callable[[bytes, Path], Any]
    mutate: Callable[[bytes, Random], bytes] | None
    true_size: Callable[[bytes], int]
    cases: int = 100
    """How many the test suite runs."""

    @staticmethod
    def load(name: str) -> Target:
        module = importlib.import_module(f"tests.fuzz.{name}")
        mutate, true_size = getattr(module, "mutate", None), getattr(module, "true_size", len)
        cases = getattr(module, "CASES", Target.cases)
        return Target(name, dict(module.seeds()), module.check, mutate, true_size, cases)

    def case(self, seed: int, number: int) -> bytes:
        """Return the input of one case, always the same: first the seeds as they are, then mutated ones."""
        inputs = list(self.inputs.values())
        if number < len(inputs):
            return inputs[number]
        random = Random(f"{self.name} {seed} {number}")
        data = random.choice(inputs)
        return self.mutate(data, random) if self.mutate and random.random() < 0.5 else mutated(data, random)


@dataclass
class Report:
    """What came of one target."""

    target: str
    cases: int = 0
    read: int = 0
    """Cases that were read as right, as far as the target says so."""
    seconds: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.cases / max(self.seconds, 1e-9)
        counts = f"{self.cases:,} cases, {self.read:,} read, {rate:,.0f} cases/s, {len(self.findings)} findings"
        return f"{self.target}: {counts}"


def names() -> list[str]:
    """Return the names of all targets."""
    files = (path for path in FOLDER.glob("*.py") if not path.stem.startswith(("_", "test_")))
    return sorted(path.stem for path in files if "\ndef check(" in path.read_text(encoding="utf-8"))


def one_line(error: BaseException) -> None:
    """Raise AssertionError unless the message of a refusal is one line."""
    line = str(error)
    assert line.isprintable() and 0 < len(line) < 2000, f"no line for a user: {line[:500]!r}"


def memory() -> tuple[int, int]:
    """Return this process's address space and its peak in bytes; zeros where the system does not say (no Linux)."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith(("VmSize", "VmPeak")))
    except OSError:
        return 0, 0
    size, peak = (int(lines[name].split()[0]) << 10 for name in ("VmSize", "VmPeak"))
    return size, peak


class Place:
    """A folder for cases: `inner/`, which a case may write to, and beside it what none may touch."""

    def __init__(self, root: Path) -> None:
        self.root, self.inner = root, root / "inner"
        self.inner.mkdir()
        (root / "outside").mkdir()
        (root / "outside" / "kept").write_text("kept")
        self.was = self.beside()

    def beside(self) -> list[tuple[str, int, int]]:
        found = []
        for entry in os.scandir(self.root):
            if entry.name != "inner":
                stat = entry.stat(follow_symlinks=False)
                found.append((entry.path, stat.st_mtime_ns, stat.st_size))
                if entry.is_dir(follow_symlinks=False):
                    for each in os.scandir(entry):
                        stat = each.stat(follow_symlinks=False)
                        found.append((each.path, stat.st_mtime_ns, stat.st_size))
        return sorted(found)

    def checked(self) -> None:
        """Empty `inner/` for the next case. Raises AssertionError where a case wrote, changed or removed what is beside
        it, and for a link out of it."""
        assert self.beside() == self.was, f"written beside the folder: {set(self.beside()) ^ set(self.was)}"
        assert self.inner.is_dir() and not self.inner.is_symlink(), "the folder itself was replaced"
        for folder, folders, files in os.walk(self.inner):
            for name in (*folders, *files):
                path = Path(folder, name)
                if path.is_symlink():
                    assert path.resolve().is_relative_to(self.inner.resolve()), f"a link out of the folder: {name}"
        for entry in list(os.scandir(self.inner)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)


_DONE, _FOUND, _AGAIN = 0, 1, 2
"""A worker's exit status: no more to do; a finding, described in its pipe; a case whose memory is to be measured in a
worker that did nothing else, not even make its input."""


class Worker:
    """A process that runs cases of one target until one of them is a finding: by its death, or by its own word."""

    def __init__(
        self, target: Target, seed: int, first: int, step: int, last: int, until: float, data: bytes | None, alone: bool
    ) -> None:
        self.shared = mmap.mmap(-1, 24)  # the case that it is at, how many are done and how many were read
        self.shared[:] = struct.pack("<qqq", first, 0, 0)
        self.target, self.first, self.step, self.last, self.until = target, first, step, last, until
        self.seed, self.data = seed, data
        self.measured = target.case(seed, first) if alone and data is None else data
        self.root = Path(tempfile.mkdtemp(prefix="fastcifar-fuzz-"))
        read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(read)
            status = _FOUND
            try:
                status = self.run(write)
            except BaseException:
                os.write(write, traceback.format_exc()[-20_000:].encode(errors="replace"))
            finally:
                os._exit(status)
        os.close(write)
        self.pipe = read

    def outcome(self) -> tuple[int, int, int, bool, str | None]:
        """Return the case that the worker was at when it ended, how many were done and read, whether this one is to be
        run again, and what was found. Waits for its end."""
        with os.fdopen(self.pipe, "rb") as pipe:
            text = pipe.read().decode(errors="replace")
        _, status = os.waitpid(self.pid, 0)
        shutil.rmtree(self.root, ignore_errors=True)
        number, done, read = struct.unpack("<qqq", self.shared[:])
        self.shared.close()
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            what = (
                f"hangs: more than {SECONDS} s" if -code == signal.SIGALRM else f"dies of {signal.Signals(-code).name}"
            )
            return number, done, read, False, f"{what}\n{text}"
        return number, done, read, code == _AGAIN, text if code == _FOUND else None

    def run(self, pipe: int) -> int:
        """Run cases, in the worker, and return its exit status."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        size, _ = memory()
        if size:
            resource.setrlimit(resource.RLIMIT_AS, (size + MOST, size + MOST))
        faulthandler.enable(pipe)
        faulthandler.register(signal.SIGALRM, pipe, chain=True)  # says where it hangs, and dies
        warnings.simplefilter("ignore")
        place = Place(self.root)
        os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = str(self.root / "outside")
        os.chdir(place.inner)
        number, done, read, given = self.first, 0, 0, self.measured
        while number < self.last and (time.monotonic() < self.until or not done):
            self.shared[:] = struct.pack("<qqq", number, done, read)
            data = self.target.case(self.seed, number) if given is None else given
            allowed = 2 * self.target.true_size(data) + SLACK
            before, _ = memory()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            is_read = self.target.check(data, place.inner)
            signal.setitimer(signal.ITIMER_REAL, 0)
            grown = memory()[1] - before
            if grown > allowed:
                if given is None:  # the peak may be that of an earlier case, or of the mutation
                    return _AGAIN
                size = self.target.true_size(data)
                raise AssertionError(f"{grown >> 20} MiB of memory for {size:,} bytes; allowed: {allowed >> 20} MiB")
            place.checked()
            is_right = number < len(self.target.inputs) and self.data is None
            assert is_read is not False or not is_right, f"refused: {list(self.target.inputs)[number]}"
            os.chdir(place.inner)
            number, done, read, given = number + self.step, done + 1, read + (is_read is True), self.data
        self.shared[:] = struct.pack("<qqq", number, done, read)
        return _DONE


def fuzz(
    target: Target,
    *,
    seed: int = 0,
    seconds: float = float("inf"),
    cases: int = sys.maxsize,
    jobs: int = 1,
    data: bytes | None = None,
    out: Path | None = None,
) -> Report:
    """Run cases of a target in `jobs` workers, until the seconds or the cases are over, and return what came of them.

    data: one input to run in place of all others.
    out: the folder to write findings to; None: they are only reported.
    """
    report, start, seen = Report(target.name), time.monotonic(), set()
    until = start + seconds
    workers: dict[int, Worker] = {}

    def begin(first: int, step: int, alone: bool = False) -> None:
        worker = Worker(target, seed, first, step, cases, until, data, alone)
        workers[worker.pipe] = worker

    for first in range(jobs):
        begin(first, jobs)
    while workers:
        ended, _, _ = select.select(list(workers), [], [])  # a pipe ends with its worker
        worker = workers.pop(ended[0])
        number, done, read, again, what = worker.outcome()
        report.cases, report.read = report.cases + done + (what is not None), report.read + read
        if what is not None:
            reason = what.strip().splitlines()
            kind = (reason[0], *reason[1:3]) if "hangs" in reason[0] or "dies" in reason[0] else tuple(reason[-3:])
            if kind not in seen:
                seen.add(kind)
                report.findings.append(_keep(target, seed, number, data, what, out))
        if (again or what is not None) and len(seen) < DISTINCT:
            next_case = number if again else number + worker.step
            if next_case < cases and (again or time.monotonic() < until):
                begin(next_case, worker.step, alone=again)
    report.seconds = time.monotonic() - start
    return report


def _keep(target: Target, seed: int, number: int, data: bytes | None, what: str, out: Path | None) -> dict[str, Any]:
    data = target.case(seed, number) if data is None else data
    found = {"seed": seed, "case": number, "bytes": len(data), "what": what.strip()}
    if out:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        path.with_name(f"{path.name}.txt").write_text(f"case {number} of seed {seed}\n{what}\n", encoding="utf-8")
        found["file"] = str(path)
    return found


def write_table(reports: Iterable[Report], path: Path) -> None:
    """Write the figures of the targets as JSON."""
    rows = [
        {
            **{"target": each.target, "cases": each.cases, "read": each.read, "seconds": round(each.seconds, 1)},
            **{"cases_per_second": round(each.cases / max(each.seconds, 1e-9)), "findings": each.findings},
        }
        for each in reports
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
