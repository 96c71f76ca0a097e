"""The processes that one launcher, such as torchrun, has started together. Standard library only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def launch_name() -> str | None:
    """Return a name that the processes of one launch have in common, and those of another launch have not; None for a
    process without a launcher.

    It goes by the launch's id or, where it was given none, by the launcher's process.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return None
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    facts = [launch, os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")]
    if launch == "none":  # as torchrun says for none
        facts += [str(os.getppid()), _start_of(os.getppid())]
    return "launch" + hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def _start_of(process: int) -> str:
    """Return when a process began, as several may have its number one after another; "" without Linux's /proc."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
