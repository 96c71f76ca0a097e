"""The clocks that a measurement ran at, so that a slow one can be told from a throttled machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

GPU_QUERY = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")


def read_clocks(device: str) -> dict[str, object]:
    """Return `cpu_mhz` of each CPU that this process may use; on CUDA also what nvidia-smi says of the first GPU, as it
    says it. What the system does not tell is left out."""
    clocks: dict[str, object] = {}
    if mhz := _cpu_mhz():
        clocks["cpu_mhz"] = mhz
    if device.startswith("cuda") and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits", "--id=0"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return clocks
        clocks |= dict(zip(GPU_QUERY, done.stdout.strip().split(", "), strict=False))
    return clocks


def _cpu_mhz() -> list[float]:
    try:
        processors, usable = Path("/proc/cpuinfo").read_text().split("\n\n"), os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return []
    found = [dict(re.findall(r"^(processor|cpu MHz)\s*:\s*(\S+)", text, re.MULTILINE)) for text in processors]
    return [float(one["cpu MHz"]) for one in found if "cpu MHz" in one and int(one["processor"]) in usable]
