"""Part `tests`: those of the kernels, and those that need a GPU, on the device at hand."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator

from bench.campaign.campaign import Campaign, Record
from bench.peers.worker import ROOT

KERNELS = ["tests/kernels", "--ignore=tests/kernels/test_compile_ahead.py"]
"""All but what compiles for GPUs that are not there."""
OTHERS = ["tests/optim", "tests/training", "tests/data", "-m", "gpu", "--continue-on-collection-errors"]
"""Files that need what is not here are left out so."""
TINY = ["tests/optim/test_lookahead.py"]
_OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b")
_NAME = re.compile(r"tests/\S+?\.py(?:::\S.*?)?(?= (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b|$)")


def tests(campaign: Campaign) -> Iterator[Record]:
    """A finding for each test that fails, as soon as it has, with the end of what it says where pytest came to say it;
    then how many passed, failed and were skipped."""
    for which in [TINY] if campaign.tiny else [KERNELS, OTHERS]:
        yield from _run(campaign, which)


def _run(campaign: Campaign, which: list[str]) -> Iterator[Record]:
    command = [sys.executable, "-m", "pytest", "-v", "--no-header", "--tb=short", "-p", "no:cacheprovider", *which]
    if importlib.util.find_spec("xdist") and not campaign.tiny:
        command += ["-n", str(max(1, (os.cpu_count() or 2) // 2))]
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    words = {"PASSED": "passed", "SKIPPED": "skipped", "XFAIL": "skipped"}
    told: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            told.append(line.rstrip())
            outcome, name = _OUTCOME.search(line), _NAME.search(line.rstrip())
            if outcome and name and ("::" in name[0] or outcome[1] == "ERROR") and not line.startswith(outcome[1]):
                count = words.get(outcome[1], "failed")
                counts[count] += 1
                if count == "failed":
                    yield {"what": "finding", "program": name[0], "found": "failed"}
            if campaign.seconds_left < 0:
                process.terminate()
                break
    reasons = [line for line in told if line.startswith(("E  ", "FAILED", "ERROR"))]
    yield {"what": "tests", "of": which[0], **counts, "exit_code": process.returncode, "reasons": reasons[-60:]}
