"""Append results to a results file, each with its hardware, versions, commit and date.

A line of a results file is a JSON object. It has `n`, the `spread`, the `command` that gives it again and what is
shown: either `what` and `value` or `row` (heading to cell). `table` is the name of its table, without one that of the
measurements in docs/results.md, and None where the result is in no table. `append` adds the rest: `hardware`,
`versions`, `commit` and `date`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import torch

from fastcifar.errors import UserError
from fastcifar.record import Versions, commit_of
from fastcifar.training import describe_device, resolve_device

ROOT = Path(__file__).resolve().parent.parent
GIVEN = ("n", "spread", "command")
ADDED = ("hardware", "versions", "commit", "date")


def append(path: str | Path, record: dict[str, object], device: str | torch.device = "auto") -> dict[str, object]:
    """Append `record` to the .jsonl file at `path`, which need not exist, and return it as written.

    Its hardware, versions, commit and date stay, if it has them; else those of now and of `device` are added. Raises
    UserError for a record that lacks a key or that JSON cannot hold, and where the file cannot be written.
    """
    date = time.strftime("%Y-%m-%d", time.gmtime())
    known = {"hardware": describe_hardware(device), "versions": versions(), "commit": commit(), "date": date}
    record = {**record, **{key: value for key, value in known.items() if key not in record}}
    if missing := missing_keys(record):
        raise UserError(f"the record lacks {', '.join(missing)}; allowed: a record with all of them")
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the record cannot be written as JSON: {error}; allowed: finite numbers and text") from None
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}; allowed: a .jsonl file") from None
    return record


def show(record: dict[str, object], save: Path | None, device: str | torch.device = "auto") -> None:
    """Print a result of the table of measurements, and append it to `save`, if given."""
    print(f"{record['what']}: {record['value']} (n={record['n']}, {record['spread']})")
    if save:
        append(save, record, device)


def missing_keys(record: dict[str, object]) -> list[str]:
    """Return the keys that a whole record has and this one lacks."""
    shown = ("row",) if "row" in record else ("what", "value") if record.get("table", "") is not None else ()
    return [key for key in (*shown, *GIVEN, *ADDED) if key not in record]


def describe_hardware(device: str | torch.device = "auto") -> str:
    """Return a line on what computes: the GPU's name, or the CPU's with its cores and memory."""
    resolved = resolve_device(device)
    name = " ".join(str(describe_device(resolved).name).split())
    if resolved.type == "cuda":
        return name
    cores = os.cpu_count() or 1
    text = f"{cores} core{'s' * (cores != 1)} of {name}"
    try:
        text += " with AMX" * ("amx_bf16" in Path("/proc/cpuinfo").read_text())
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return text
    return f"{text}, {round(memory / 2**30)} GiB"


def versions() -> dict[str, str]:
    """Return the versions of Python and of what computes."""
    known = dataclasses.asdict(Versions.here())
    found = {name: version for name, version in known.items() if version and name != "fastcifar"}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def commit(checkout: Path | None = None) -> str:
    """Return the commit that is checked out, here or in `checkout`, with "+changes" where tracked files differ from it;
    "unknown" outside git."""
    return commit_of(checkout or ROOT) or "unknown"
