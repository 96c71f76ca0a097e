"""What the operating system lets this process use: cores and memory. Standard library only.

On Linux that is what the limits of the process and of its control groups (a container's) leave of the machine.
Elsewhere, and where a file cannot be read, what is not known is None or left out. Also sizes of memory in words.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

GIB = 2**30
UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50, "EiB": 2**60}

_ROOT = Path("/")


def cores(root: Path = _ROOT) -> float:
    """Return the number of CPU cores that this process may use, a fraction where a quota says so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *_quotas(root)])


def total_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that this process may fill at most, with what others already fill."""
    limits = [limit for limit, _ in (*_memory_groups(root), *_address_space(root))]
    return min([*limits, *_meminfo("MemTotal", root)], default=None)


def free_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that this process may still fill: what is free, and what the system would clear."""
    left = [max(0, limit - used) for limit, used in (*_memory_groups(root), *_address_space(root))]
    return min([*left, *_meminfo("MemAvailable", root)], default=None)


def resident_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes of this process that lie in memory now."""
    return _status("VmRSS", root)


def peak_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes of this process that lay in memory at most since the last `restart_peak`."""
    return _status("VmHWM", root)


def restart_peak(root: Path = _ROOT) -> bool:
    """Let `peak_memory` count anew. Returns False where the system does not."""
    try:
        (root / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return peak_memory(root) is not None


def size_words(size: float) -> str:
    """Return bytes in words, in GiB unless they are few."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / UNITS['MiB']:,.1f} MiB"


def _status(name: str, root: Path) -> int | None:
    found = re.search(rf"(?m)^{name}:\s+(\d+) kB", _read(root / "proc/self/status"))
    return 1024 * int(found[1]) if found else None


def _meminfo(name: str, root: Path) -> list[int]:
    return [1024 * int(found) for found in re.findall(rf"(?m)^{name}:\s+(\d+) kB", _read(root / "proc/meminfo"))]


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Give the limit of each control group in bytes, and what is used of it without files that can be read again."""
    for folder in _groups("memory", root):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            files = re.findall(r"(?m)^(?:total_)?inactive_file (\d+)", _read(folder / "memory.stat"))
            yield limit, used - int([0, *files][-1])  # the total, which has those of the groups inside, comes last


def _address_space(root: Path) -> list[tuple[int, int]]:
    """Return the bytes of addresses that this process may take (`ulimit -v`), and those it has; nothing where there is
    no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    limit, taken = resource.getrlimit(resource.RLIMIT_AS)[0], _read(root / "proc/self/statm").split()
    return [(limit, int(taken[0]) * resource.getpagesize())] if taken and limit != resource.RLIM_INFINITY else []


def _quotas(root: Path) -> Iterator[float]:
    """Give the cores that each control group has the time of."""
    for folder in _groups("cpu", root):
        words = _read(folder / "cpu.max").split()
        words = words or [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        with contextlib.suppress(ValueError, ZeroDivisionError):  # "max", or no such file
            quota, period = map(int, words)
            if quota > 0:
                yield quota / period


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Give the folders of this process's control groups, of versions 1 and 2, and of those around them."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if names else "")
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _number(*paths: Path) -> int | None:
    """Return the number in the first of these files that holds one."""
    found = (_read(path).strip() for path in paths)
    return next((int(text) for text in found if text.isdecimal()), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
