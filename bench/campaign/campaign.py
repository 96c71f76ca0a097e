"""What every part of the campaign is given, and how a part is run."""

from __future__ import annotations

import json
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fastcifar.training.stopwatch import Stopwatch

Record = dict[str, object]
Part = Callable[["Campaign"], Iterator[Record]]


@dataclass
class Campaign:
    """The machine, the folder of results and the time that is left."""

    out: Path
    device: torch.device
    tiny: bool
    """Everything at a size that ends in seconds on a CPU: to prove that it runs, not to measure."""
    data: Path | None
    """Folder with CIFAR-10; None: wherever `load_dataset` finds it, and synthetic images with `tiny`."""
    peers: Path | None
    """Folder with checkouts of other people's programs; None: none."""
    ends: float
    """When the part that runs now must end, by `time.monotonic`."""
    stops: float = math.inf
    """When every process that was started is ended, whatever it is at: later than the budget's end by a share, since a
    training that is all but over is worth waiting for."""

    @property
    def seconds_left(self) -> float:
        """Seconds until the present part must end; below 0: it is over its time."""
        return self.ends - time.monotonic()

    def patience(self, least: float) -> float:
        """Seconds that a process may take for what it is asked now, `least` or more while there are so many."""
        return max(1.0, min(max(least, 2 * self.seconds_left), self.stops - time.monotonic()))

    @property
    def scratch(self) -> Path:
        """A folder for what is no result, the same in every call on a machine."""
        folder = Path(tempfile.gettempdir()) / "fastcifar-campaign"
        folder.mkdir(exist_ok=True)
        return folder

    def path(self, part: str) -> Path:
        return self.out / f"{part}.jsonl"

    def records(self, part: str) -> list[Record]:
        """What `part` has found, in this call and in earlier ones; failures left out."""
        path = self.path(part)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if "error" not in record]


def run_part(campaign: Campaign, name: str, part: Part, seconds: float) -> int:
    """Run one part for about `seconds`, its records appended to its file one by one; how many there were. A part that
    raises leaves its traceback as its last record."""
    campaign.ends = time.monotonic() + seconds
    written = 0
    with campaign.path(name).open("a", encoding="utf-8") as file:

        def write(record: Record) -> None:
            file.write(json.dumps({"part": name, "time": round(time.time(), 1), **record}) + "\n")
            file.flush()

        try:
            for record in part(campaign):
                write(record)
                written += 1
        except Exception as error:  # whatever it is, the other parts must have their turn
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"{name}: failed, {reason}", flush=True)
            write({"error": reason, "traceback": traceback.format_exc()})
    return written


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
    before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            held = [call() for _ in range(calls)]  # else all would write the same memory, and find it in the cache
        del held
    except RuntimeError:
        torch.cuda.set_stream(before)  # a recording that breaks off leaves its own as the current one
        torch.cuda.synchronize()
        return None
    graph.replay()
    return graph.replay
