"""`Campaign`, which every part is given, and the files of results."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from bench.campaign.faults import Faults
from fastcifar.training import resolve_device

Line = dict[str, object]  # A line of a file of results, as JSON
CHANGED = dict.fromkeys(
    ("speedrun94", "speedrun95", *(f"speedrun94-{change}" for change in ("1536", "in-turn", "searched", "unsearched"))),
    "2026-11-29",
)
"""The day from which a recipe or variant of this name is another: what was measured before, by any code, is told as
"NAME before DAY". speedrun94 had ten epochs, batches of 512 images and early crops, and left a quarter of the images
out; speedrun95 had 14 epochs of such batches, and no cutout."""
_BEFORE = " before "
OUTCOMES = ("done", "failed")  # the `what` of records that tell how a part ended; all others are results


@dataclass(frozen=True)
class Campaign:
    """The machine, the folder of results, and the time that the present part has.

    The parts are forked from the process that makes this, so that none of them imports torch anew. That process must
    never touch a device, nor compute with torch: neither CUDA nor OpenMP outlives a fork.
    """

    out: Path
    device_name: str = "auto"
    tiny: bool = False  # everything is of a size that ends in seconds on a CPU: to prove that it runs, not to measure
    data: Path | None = None
    """Folder with CIFAR-10; None: wherever `load_dataset` finds it. With `tiny` images are synthetic."""
    peers: Path | None = None  # folder with checkouts of other people's programs; None: none
    faults: Faults = frozenset()
    first_images: tuple[np.ndarray, np.ndarray] | None = None  # what `data.read_first` returned for the smoke
    ends: float = math.inf  # when the present part begins nothing new any more, by `time.monotonic`
    stops: float = math.inf  # when it is ended, even if it still measures
    ours: str | None = None  # the variant that races run in place of the recipe that it is a variant of
    beside: str | None = None
    """The part that worked in the background when the present one began and may have disturbed its timings."""
    wait_for_turn: Callable[[], Campaign] | None = None
    """For a part in the background: says that it is ready, waits until it may measure, and returns the new times."""

    @property
    def device(self) -> torch.device:
        """The device; only the processes of parts may ask for it."""
        return resolve_device(self.device_name)

    @property
    def seconds_left(self) -> float:
        """Seconds until the present part should end; below 0: it is over its time."""
        return self.ends - time.monotonic()

    def path(self, file: str) -> Path:
        return self.out / f"{file}.jsonl"

    def records(self, file: str, what: str | None = None) -> list[Line]:
        """Return the results in a file, of this call and of earlier ones; only those that are `what`, if given."""
        return [
            record
            for record in read_records(self.path(file))
            if record["what"] not in OUTCOMES and what in (None, record["what"])
        ]

    def require_capture(self, name: str, captured: bool | None, not_captured: str | None) -> None:
        """Raise CaptureFailed where a training of the recipe `name` on CUDA was not `captured`, with the reason
        `not_captured`, and where a fault says so. On a CPU nothing is captured."""
        if f"nocapture:{name}" in self.faults:
            raise CaptureFailed(f"{name}: its capture counts as failed, as a fault that is set says")
        if self.device.type == "cuda" and not captured:
            raise CaptureFailed(f"{name}: {not_captured}")


class CaptureFailed(RuntimeError):
    """The steps of a recipe run without a CUDA graph, slower: its timings are none that count."""


def append_record(path: Path, record: Line) -> None:
    """Append a line. The rest of a line that a process began before it died becomes a line of its own, which
    `read_records` skips."""
    line = json.dumps(record).encode() + b"\n"
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def named(recipe: str, seconds: float) -> str:
    """Return the recipe's name, with "before DATE" where it was another at that time, in seconds since 1970."""
    changed = CHANGED.get(recipe)
    earlier = changed and seconds < datetime.fromisoformat(f"{changed}T00:00+00:00").timestamp()
    return f"{recipe}{_BEFORE}{changed}" if earlier else recipe


def unnamed(name: str) -> str:
    """Return the recipe's name as it is now, of what `named` returned."""
    return name.partition(_BEFORE)[0]


def read_records(path: Path) -> list[Line]:
    """Return every whole line of a file of results, with its recipe as `named`; none where there is no file."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "rival" in record:  # before it was recorded which of ours raced, it was this one
            record["ours"] = record.get("ours") or "speedrun94"
        for key in ("recipe", "ours"):
            if isinstance(record.get(key), str):
                record[key] = named(record[key], record.get("time", 0.0))  # the first records have no time
        records.append(record)
    return records


def scratch() -> Path:
    """Return a folder for what is no result, the same in every call on a machine."""
    folder = Path(tempfile.gettempdir()) / "fastcifar-campaign"
    folder.mkdir(exist_ok=True)
    return folder
