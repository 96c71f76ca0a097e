"""The clocks that a measurement ran at, so that a slow one can be told from a throttled machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

GPU_QUERY = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")


def read_clocks(device: str) -> dict[str, object]:
    """`cpu_mhz` of each CPU that this process may use; on CUDA also what nvidia-smi says of the first GPU, as it says
    it. What the system does not tell is left out."""
    clocks: dict[str, object] = {}
    mhz = _cpu_mhz()
    if mhz:
        clocks["cpu_mhz"] = mhz
    if device.startswith("cuda") and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits", "--id=0"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return clocks
        if done.returncode == 0:
            clocks |= dict(zip(GPU_QUERY, done.stdout.strip().split(", "), strict=False))
    return clocks


def _cpu_mhz() -> list[float]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        usable = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return []
    mhz, number = {}, -1
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "processor":
            number = int(value)
        elif key.strip() == "cpu MHz" and number in usable:
            mhz[number] = float(value)
    return list(mhz.values())
