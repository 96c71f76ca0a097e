"""Part `tests`: the tests of the kernels, and those that need a GPU, on the device at hand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator

from bench.campaign import pytest_outcomes
from bench.campaign.campaign import Campaign, Line
from bench.peers.worker import ROOT

KERNELS = ["tests/kernels", "--ignore=tests/kernels/test_compile_ahead.py"]
"""Without what compiles for GPUs that are not there."""
OTHERS = ["-m", "gpu", "--continue-on-collection-errors"]
"""All others that need a GPU. This way files that need what is not here are left out."""
TINY = ["tests/optim/test_newton_schulz.py"]


def tests(campaign: Campaign) -> Iterator[Line]:
    """Yield a finding for each test that fails, as soon as it has; then how many passed, failed and were skipped."""
    wanted = {"tiny": TINY} if campaign.tiny else {"kernels": KERNELS, "others": [*_marked(), *OTHERS]}
    for name, which in wanted.items():
        yield from _run(campaign, name, which)


def _marked() -> list[str]:
    """Return the files with tests that need a GPU, but for those of kernels: collecting all files takes long."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in files if "mark.gpu" in (ROOT / path).read_text() and "kernels" not in path.parts]


def _run(campaign: Campaign, of: str, which: list[str]) -> Iterator[Line]:
    reading, writing = os.pipe()
    plugins = ["-p", "no:cacheprovider", "-p", pytest_outcomes.__name__]
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", *plugins]
    if importlib.util.find_spec("xdist") and not campaign.tiny:
        command += ["-n", str(max(1, (os.cpu_count() or 2) // 2))]
    environment = {**os.environ, pytest_outcomes.VARIABLE: str(writing)}
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    with open(reading, encoding="utf-8") as lines:
        process = subprocess.Popen([*command, *which], cwd=ROOT, env=environment, pass_fds=[writing])
        os.close(writing)  # so that the lines end where it does
        for line in lines:
            name, outcome, text = json.loads(line)
            counts[outcome] += 1
            if outcome == "failed":
                # The first line that pytest marks as the error.
                marked = (line[1:].strip() for line in text.splitlines() if line.startswith("E "))
                reason = next(marked, text.strip().rpartition("\n")[2])
                yield {"what": "finding", "program": name, "found": f"failed: {reason}", "printed": text[-2000:]}
            if campaign.seconds_left < 0:
                process.terminate()
                break
    yield {"what": "tests", "of": of, **counts, "exit_code": process.wait()}
