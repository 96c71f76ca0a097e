"""A plugin of pytest for the part `tests`: each outcome as a JSON line, as soon as there is one, to the file descriptor
that the variable `OUTCOMES` names."""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "OUTCOMES"


class Outcomes:
    def __init__(self, descriptor: int) -> None:
        self._file = open(descriptor, "w", buffering=1, encoding="utf-8")  # noqa: SIM115  (as long as the process)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of a test its call; of one that did not come to it why: skipped, or its fixtures failed."""
        if report.when == "call" or not report.passed:
            print(json.dumps([report.nodeid, report.outcome, report.longreprtext]), file=self._file)


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers tell the process that started them
        config.pluginmanager.register(Outcomes(int(os.environ[VARIABLE])))
