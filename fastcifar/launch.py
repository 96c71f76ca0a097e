"""The processes that one launcher, such as torchrun, has started together. Standard library only."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from fastcifar.errors import UserError, brief
from fastcifar.machine import cores

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Rank:
    """The place of this process among those of one torchrun; by default that of a process alone."""

    number: int = 0
    """From 0 on; the first one tells and writes what all of them found."""
    count: int = 1
    """Processes of the launch, on all machines."""
    local: int = 0
    """The place among those of this machine."""
    local_count: int = 1
    """Processes of the launch on this machine."""

    @classmethod
    def here(cls) -> Rank:
        """Return what torchrun's variables say. Raises UserError where they contradict each other."""
        if not all(name in os.environ for name in _VARIABLES):
            return cls()
        given = {name: os.environ[name] for name in _VARIABLES}
        for name, text in given.items():
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise UserError(f"the variable {name} is {brief(text)}; allowed: a number, as torchrun sets it")
        rank = cls(*(int(text) for text in given.values()))
        if not (rank.number < rank.count and rank.local < rank.local_count <= rank.count):
            shown = " ".join(f"{name}={text}" for name, text in given.items())
            raise UserError(f"the variables of a launch are {shown}; allowed: ranks below their sizes")
        return rank

    @property
    def is_first(self) -> bool:
        return self.number == 0

    @property
    def threads(self) -> int | None:
        """CPU threads of each process: its share of the machine's cores; None: torch's, where it is alone, or where
        OMP_NUM_THREADS says another number than 1, which torchrun sets where nobody did."""
        if self.local_count == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
            return None
        return max(1, int(cores()) // self.local_count)


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
