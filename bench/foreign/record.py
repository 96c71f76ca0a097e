"""A pytest plugin: load a suite's adapter before anything is collected, keep the tests of ours, record what they do.

An adapter is a module that, when imported, puts our classes in place of theirs. It has

    is_ours(item)   whether a collected test runs one of ours
    REASONS         why tests fail that are to fail: patterns of "NAME: ERROR", as in a shell, to one line each
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--foreign-adapter", help="module that puts ours in place of theirs")
    parser.addoption("--foreign-result", type=Path, help="JSON file to write")


def pytest_configure(config: pytest.Config) -> None:
    sys.path.insert(0, str(config.rootpath))  # an adapter imports from the checkout
    adapter = import_module(config.getoption("--foreign-adapter"))
    config.pluginmanager.register(Recorder(adapter, config.getoption("--foreign-result")))


class Recorder:
    """What became of each test, written at the end."""

    def __init__(self, adapter: ModuleType, path: Path) -> None:
        self.adapter, self.path = adapter, path
        self.left_out = 0
        self.outcomes: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.skips: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        ours = [item for item in items if self.adapter.is_ours(item)]
        self.left_out = len(items) - len(ours)
        items[:] = ours

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
            self.errors[report.nodeid] = _last_line(str(report.longrepr))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.errors[report.nodeid] = _error(report)
        elif report.skipped and self.outcomes.get(report.nodeid) != "skipped":
            self.skips[_skip(report)] += 1
        if report.failed or report.skipped or report.nodeid not in self.outcomes:
            self.outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self) -> None:
        counts = Counter(self.outcomes.values())
        result = {
            "tests": len(self.outcomes),
            "passed": counts["passed"],
            "failed": counts["failed"],
            "skipped": counts["skipped"],
            "skips": dict(self.skips.most_common()),
            "left_out": self.left_out,
            "failures": {
                test: {"error": error, "reason": find_reason(f"{test}: {error}", self.adapter.REASONS)}
                for test, error in self.errors.items()
            },
        }
        self.path.write_text(json.dumps(result), encoding="utf-8")


def find_reason(failure: str, reasons: dict[str, str]) -> str | None:
    """Return why a test is to fail, of "NAME: ERROR": the reason of the first pattern that this matches; None: none."""
    return next((reason for pattern, reason in reasons.items() if fnmatch.fnmatch(failure, pattern)), None)


def _error(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return next(iter(crash.message.strip().splitlines()), "") if crash else _last_line(str(report.longrepr))


def _skip(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "fails for their own, too"
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].removeprefix("E").strip()
