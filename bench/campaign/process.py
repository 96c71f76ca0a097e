"""`Part`, and its process: in a session of its own, so that what it starts ends with it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TextIO

import torch

from bench.campaign.campaign import Campaign, Line, append_record, read_records
from bench.campaign.faults import strike
from fastcifar.kernels import keep_freed_memory

GRACE = 3.0  # seconds between SIGTERM and SIGKILL
LOG = "log.txt"
_SOFT = 0.8  # the share of its limit after which a part begins nothing new
_TOLD, _LOGGED = 60, 200  # lines, the last that a part printed: in the record of its failure, and in the log
_POLL = 0.02
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


@dataclass(frozen=True)
class Part:
    """One piece of the campaign: a generator of results, and the file that they go to."""

    name: str
    run: Callable[[Campaign], Iterator[Line]]
    file: str
    share: float  # the share of the stage's seconds after which it is ended
    of: str = ""  # the recipe or rival that it measures, where there are several parts of one name

    @property
    def title(self) -> str:
        return f"{self.name}:{self.of}" if self.of else self.name

    @property
    def names(self) -> set[str]:
        """Its names in --only and in FASTCIFAR_FAULT."""
        return {self.name, self.title}


class PartProcess:
    """A running part, forked from this process, which is ended after `limit` seconds."""

    def __init__(self, part: Part, campaign: Campaign, limit: float) -> None:
        self.part, self.limit = part, limit
        self._path, self._started = campaign.path(part.file), time.monotonic()
        self._ends = self._started + limit
        self._results, self._late, self._ready = self._count(), False, False
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace", buffering=1)  # noqa: SIM115
        self._connection, theirs = multiprocessing.Pipe()
        campaign = dataclasses.replace(campaign, ends=self._started + _SOFT * limit, stops=self._ends)
        sys.stdout.flush()
        sys.stderr.flush()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_enter, args=(part, campaign, self._log, theirs))
        self._process.start()
        theirs.close()

    @property
    def is_ready(self) -> bool:
        """True once it waits for its turn to measure."""
        with contextlib.suppress(EOFError, OSError):
            self._ready = self._ready or (self._connection.poll() and self._connection.recv())
        return self._ready

    @property
    def is_over(self) -> bool:
        return not self._process.is_alive()

    def take_turn(self, seconds: float, most: float) -> None:
        """Let it measure for `seconds`; it is ended after `most`."""
        now = time.monotonic()
        self._ends = min(self._ends, now + most)
        with contextlib.suppress(OSError):  # it died while it waited, which its outcome will say
            self._connection.send({"ends": now + seconds, "stops": self._ends})

    def wait(self, or_ready: bool = False, seconds: float = math.inf) -> None:
        """Wait until the part is over, at its limit at the latest, or with `or_ready` until it is ready; not longer
        than `seconds`."""
        until = time.monotonic() + seconds
        while not self.is_over and not (or_ready and self.is_ready):
            if (now := time.monotonic()) > self._ends:
                self.cut_short()
            if now > until:
                return
            time.sleep(_POLL)

    def cut_short(self) -> None:
        """End the part before it is done, which its outcome will say."""
        self.limit, self._late = min(self.limit, time.monotonic() - self._started), True
        self.end()

    def end(self) -> None:
        """End the part and all that it started; at once where it is over."""
        if not self.is_over:
            self._signal(signal.SIGTERM)
            self._process.join(GRACE)
        self._signal(signal.SIGKILL)
        self._process.join()

    def conclude(self, campaign: Campaign) -> str:
        """End the part if it still runs, record how it ended, and return a line that says it."""
        self.end()
        seconds = time.monotonic() - self._started
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        results = self._count() - self._results
        with (campaign.out / LOG).open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in (f"== {self.part.title}", *lines[-_LOGGED:]))
        reason = self._reason(lines)
        record = {"what": "failed" if reason else "done", "part": self.part.title, "seconds": round(seconds, 1)}
        append_record(self._path, {**record, **({"reason": reason, "printed": lines[-_TOLD:]} if reason else {})})
        return f"{self.part.title}: {results} results in {seconds:.0f} s" + (f", failed: {reason}" if reason else "")

    def _count(self) -> int:
        """Return how many records are of this part; others add to its file too."""
        return sum(record.get("part") == self.part.title for record in read_records(self._path))

    def _reason(self, lines: list[str]) -> str | None:
        code = self._process.exitcode
        if self._late:
            return f"took more than its {self.limit:.0f} s and was ended"
        if code < 0:
            return f"died by {signal.Signals(-code).name}"
        return f"exit code {code}: {lines[-1] if lines else 'nothing printed'}"[:500] if code else None

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # nothing is left of it, or it has no session yet
            self._process.kill()


def _enter(part: Part, campaign: Campaign, log: TextIO, connection: Connection) -> None:
    """Run the part; this is its own process."""
    os.setsid()
    # Linux kills this process when its parent dies, even by SIGKILL: nobody else would hold it to its limit.
    getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    faulthandler.enable(log)
    faulthandler.register(signal.SIGTERM, log, all_threads=False, chain=True)  # where it was when it was ended

    def wait_for_turn() -> Campaign:
        connection.send(True)
        return dataclasses.replace(campaign, **connection.recv())

    if campaign.device_name == "cpu":
        keep_freed_memory()
    if campaign.tiny:  # threads would wait for one another longer than they work
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    strike(campaign.faults, part.names)
    path, beside = campaign.path(part.file), {"beside": campaign.beside} if campaign.beside else {}
    for record in part.run(dataclasses.replace(campaign, wait_for_turn=wait_for_turn)):
        append_record(path, {"part": part.title, "time": round(time.time(), 1), **beside, **record})
