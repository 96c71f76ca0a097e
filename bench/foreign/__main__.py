"""Run other people's tests on our classes.

    python -m bench.foreign --checkouts DIR                    # every suite that is there
    python -m bench.foreign --checkouts DIR --only pytorch-optim --save FILE.json

DIR holds the checkouts under the names of their repositories, as DIR/pytorch/test/test_optim.py; single files will do.
The adapters put ours in place of theirs, where their tests read what is tested from a list or call a function. What
tests none of ours is left out. Exits with 1 where a test fails without a reason in its adapter.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench.foreign.suites import SUITES, Suite, choose
from bench.program import new_parser, run_program
from fastcifar.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    results = [run(name, SUITES[name], options.checkouts) for name in choose(options.checkouts, options.only)]
    print(table(results))
    print(*explain(results), sep="\n")
    if options.save:
        options.save.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    without = [result for result in results if not result["tests"]]
    for result in without:
        print(f"NO TEST: {result['suite']} selects none of its tests any more")
    return int(bool(without) or any(not each["reason"] for result in results for each in result["failures"].values()))


def explain(results: list[dict[str, Any]]) -> list[str]:
    """Return a line for each reason why tests failed, with their number, and two for each test without a reason."""
    failures = [failure for result in results for failure in result["failures"].items()]
    reasons = Counter(failure["reason"] for _, failure in failures if failure["reason"])
    lines = [f"{count} x {reason}" for reason, count in reasons.most_common()]
    for test, failure in failures:
        if not failure["reason"]:
            lines += [f"NO REASON: {test}", f"    {failure['error']}"]
    return lines


def run(name: str, suite: Suite, checkouts: Path) -> dict[str, Any]:
    """Return what became of a suite's tests, run in a process of its own. Raises UserError where pytest could not
    run."""
    folder, files = (checkouts / suite.folder).resolve(), suite.found(checkouts)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "result.json")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-c", os.devnull, f"--rootdir={folder}"]
        command += ["-p", "no:cacheprovider", "-p", "bench.foreign.record", "--disable-warnings"]
        command += [f"--foreign-adapter={suite.adapter}", f"--foreign-result={path}", *files]
        run = subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, text=True)
        if not path.is_file():
            lines = (run.stderr or run.stdout).strip().splitlines() or [f"exit code {run.returncode}"]
            raise UserError(f"pytest could not run the suite {name}: {lines[-1]}")
        result = json.loads(path.read_text(encoding="utf-8"))
    return {"suite": name, "version": version(folder, files), "torch": importlib.metadata.version("torch"), **result}


def version(folder: Path, files: list[str]) -> str:
    """Return the commit of a checkout; of single files a digest of their text."""
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True)
    if commit.returncode == 0:
        return commit.stdout.strip()
    return "sha256 " + hashlib.sha256(b"".join((folder / file).read_bytes() for file in files)).hexdigest()[:12]


def table(results: list[dict[str, Any]]) -> str:
    """Return the counts as a Markdown table."""
    columns = ["suite", "version", "tests", "passed", "failed", "skipped"]
    lines = ["| " + " | ".join(columns) + " |", "| --- | --- |" + " ---: |" * 4]
    lines += ["| " + " | ".join(str(result[column]) for column in columns) + " |" for result in results]
    return "\n".join(lines)


def _environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    chosen = {"PYTORCH_TESTING_DEVICE_ONLY_FOR": "cpu", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **chosen}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = new_parser("bench.foreign", __doc__)
    parser.add_argument("--checkouts", type=Path, required=True, help="folder of the checkouts")
    parser.add_argument("--only", metavar="A,B", help=f"suites, of {', '.join(SUITES)}")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write the results there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_program("bench.foreign", main)
