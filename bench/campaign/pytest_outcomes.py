"""A pytest plugin for the part `tests`: it writes each outcome, as soon as there is one, as a line of JSON to the file
descriptor in the environment variable `OUTCOMES`."""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "OUTCOMES"


class Outcomes:
    """The plugin."""

    def __init__(self, descriptor: int) -> None:
        self._file = open(descriptor, "w", buffering=1, encoding="utf-8")  # noqa: SIM115  (as long as the process)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write the outcome of a test's call, or that the test was skipped or its fixtures failed."""
        if report.when == "call" or not report.passed:
            print(json.dumps([report.nodeid, report.outcome, report.longreprtext]), file=self._file)


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers tell the process that started them
        config.pluginmanager.register(Outcomes(int(os.environ[VARIABLE])))
